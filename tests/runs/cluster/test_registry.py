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

ONE, TWO, THREE = (text_digest(text) for text in ("Write a poem.", "Write an essay.", "Write a letter."))


@pytest.fixture
def file(tmp_path: Path) -> Iterator[CoordinatorFile]:
    file = CoordinatorFile(tmp_path / "coordinator.sqlite", shards=4)
    yield file
    file.close()


def test_the_first_claim_decides(file: CoordinatorFile) -> None:
    registry = Registry(file)
    assert registry.claim(0, [ONE, TWO]) == []
    assert registry.claim(1, [THREE, TWO, ONE]) == [TWO, ONE]
    assert registry.claim(0, [THREE]) == [THREE]


def test_the_same_question_has_the_same_answer(file: CoordinatorFile) -> None:
    registry = Registry(file)
    registry.claim(0, [ONE])
    assert [registry.claim(1, [ONE, TWO]) for _ in range(3)] == [[ONE]] * 3
    assert [registry.claim(0, [ONE, TWO]) for _ in range(2)] == [[TWO]] * 2


def test_an_instruction_that_comes_twice_in_a_claim_is_one(file: CoordinatorFile) -> None:
    registry = Registry(file)
    assert registry.claim(0, [ONE, ONE]) == [] and registry.claim(1, [ONE, ONE]) == [ONE]
    assert registry.claim(0, []) == []


def test_it_is_all_in_the_file(tmp_path: Path) -> None:
    rng, owners = random.Random(0), dict[bytes, int]()
    known = [rng.randbytes(16) for _ in range(300)]
    for _ in range(10):
        file = CoordinatorFile(tmp_path / "coordinator.sqlite", shards=4)
        registry = Registry(file)
        for _ in range(20):
            shard, asked = rng.randrange(4), rng.sample(known, rng.randint(0, 12))
            theirs = [digest for digest in asked if owners.setdefault(digest, shard) != shard]
            assert registry.claim(shard, asked) == theirs
        file.close()
    assert len(owners) > 250


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
