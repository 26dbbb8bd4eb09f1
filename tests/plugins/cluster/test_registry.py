"""Claims: an instruction belongs to the shard that asked first, whoever asks, however often, after any end."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from refed_dspy.errors import RunStopped
from refed_dspy.ledger.statements import text_digest
from refed_dspy.plugins.cluster.coordinator import CoordinatorFile, Registry
from tests.support.said import Said

ONE = text_digest("Write a poem.")


@pytest.fixture
def file(tmp_path: Path) -> Iterator[CoordinatorFile]:
    file = CoordinatorFile(tmp_path / "coordinator.sqlite", shards=4)
    yield file
    file.close()


def test_the_first_claim_decides_also_of_those_who_ask_again_and_after_any_end(tmp_path: Path) -> None:
    rng, owners = random.Random(0), dict[bytes, int]()
    known = [rng.randbytes(16) for _ in range(150)]
    for _ in range(5):
        file = CoordinatorFile(tmp_path / "coordinator.sqlite", shards=4)
        registry = Registry(file)
        for _ in range(20):
            shard, asked = rng.randrange(4), rng.choices(known, k=rng.randint(0, 12))
            theirs = [digest for digest in dict.fromkeys(asked) if owners.setdefault(digest, shard) != shard]
            assert registry.claim(shard, asked) == theirs
        file.close()
    assert len(owners) > 120 and len({*owners.values()}) == 4


def test_what_could_not_be_written_is_nobodys(said: Said, file: CoordinatorFile) -> None:
    registry = Registry(file)
    registry.claim(0, [ONE])
    (pages,) = file.db.execute("PRAGMA page_count").fetchone()
    file.db.execute(f"PRAGMA max_page_count={pages}")
    many = [text_digest(str(n)) for n in range(1_000)]
    with said.by(RunStopped):
        registry.claim(0, many)
    file.db.execute("PRAGMA max_page_count=100000")
    assert registry.claim(1, [*many, ONE]) == [ONE]


def test_what_is_no_digest_is_refused(said: Said, file: CoordinatorFile) -> None:
    with said.by(ValueError):
        Registry(file).claim(0, [ONE, b"short"])
