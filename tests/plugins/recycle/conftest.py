"""An endpoint that scores texts as vLLM's does."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.toy_server import ToyHandler, ToyServer, toy_served


class ChecksumEndpoint(ToyHandler):
    """Derives a prompt's log probability from its checksum, so that figures lie on both sides of 1; or, while `fault`
    says "by length", from its length, so that whatever comes after a context is likelier."""

    def answer(self, ids: list[int], fault: str) -> dict[str, Any]:
        if fault and fault != "by length":
            return super().answer(ids, fault)
        logprob = -1 / len(ids) if fault else -1 - (zlib.crc32(bytes(ids)) % 100) / 100
        logprobs = [None, *({str(token): {"logprob": logprob}} for token in ids[1:])]
        return {"choices": [{"text": "a", "prompt_logprobs": logprobs}], "usage": {"prompt_tokens": len(ids)}}


@pytest.fixture(scope="module")
def toy() -> Iterator[ToyServer]:
    """An endpoint that scores as vLLM's does."""
    with toy_served() as endpoint:
        endpoint.RequestHandlerClass = ChecksumEndpoint
        yield endpoint


@pytest.fixture
def scoring(toy: ToyServer) -> ToyServer:
    toy.reset()
    return toy
