"""Of a request that cannot have left nothing is charged or counted, however many others were under way."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

import refed_dspy
from refed_dspy.errors import TeacherError
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.spending import spent

REFERENCES = [{"instruction": f"Explain topic {n}.", "response": f"Topic {n} is about things."} for n in range(12)]


@pytest.fixture
def closed() -> Iterator[int]:
    """A port at which nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


@pytest.fixture
def silent() -> Iterator[int]:
    """A port at which a connection is made, and a TLS handshake never ends."""
    with socket.create_server(("127.0.0.1", 0), backlog=256) as listener:
        yield listener.getsockname()[1]


@pytest.mark.parametrize("mode", ["interactive", "batch"])
@pytest.mark.parametrize("way", ["no such host", "refused", "no TLS", "dead proxy"])
def test_nothing_is_charged_where_nothing_left(
    way: str, mode: str, closed: int, silent: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = {
        "no such host": "https://no-such-host.invalid/v1",
        "refused": f"http://127.0.0.1:{closed}/v1",
        "no TLS": f"https://127.0.0.1:{silent}/v1",
        "dead proxy": "https://example.invalid/v1",
    }[way]
    if way == "dead proxy":
        monkeypatch.setenv("HTTPS_PROXY", f"http://name:secret@127.0.0.1:{closed}")
    teacher = {
        "model": "openai/some", "api_base": address, "price": {"prompt": 1, "completion": 4}, "timeout": 0.5,
        "concurrency": 24, "mode": mode, "batch": {"quiet": 0.05},
    }  # fmt: skip
    for _ in range(2):
        with pytest.raises(TeacherError) as told:
            refed_dspy.synthesize(
                None, REFERENCES, size=1_000, teacher=teacher, run_dir=tmp_path / "run", max_cost=5, progress=False
            )
        assert "secret" not in str(told.value)
        assert (f"127.0.0.1:{closed}" in str(told.value)) == (way in ("dead proxy", "refused")), "who is not there"
        with Ledger.read(tmp_path / "run") as ledger:
            used = spent(ledger)
        assert (used.calls, used.picodollars) == (0, 0)
