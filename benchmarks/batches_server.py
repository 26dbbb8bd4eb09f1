"""The Files and Batches endpoints of the simulated teacher, one service for each kind: OpenAI's and Azure's (together),
Anthropic's and Gemini's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiohttp import web

from benchmarks.batch_life import Service
from benchmarks.batches_anthropic import AnthropicBatches
from benchmarks.batches_gemini import GeminiBatches
from benchmarks.batches_openai import OpenAIBatches

if TYPE_CHECKING:
    from benchmarks.server import Simulator


class Batches:
    """All services of one simulated teacher."""

    def __init__(self, teacher: Simulator) -> None:
        self.services: tuple[Service, ...] = tuple(
            kind(teacher) for kind in (OpenAIBatches, AnthropicBatches, GeminiBatches)
        )

    def reseed(self) -> None:
        """Restart the generators of orders and faults."""
        for service in self.services:
            service.reseed()

    def reset(self) -> None:
        """Forget every file and batch, those under way too."""
        for service in self.services:
            service.reset()

    async def handle(self, path: str, request: web.BaseRequest) -> web.StreamResponse | None:
        """The answer to a request at the path of a service; None for any other path. Raises Refused or Dropped as the
        server's handlers do."""
        for service in self.services:
            if (target := service.place(path)) is not None:
                wire, segments = target
                return await service.handle(wire, segments, request)
        return None
