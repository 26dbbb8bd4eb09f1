"""From judged pairs to people and back: a comparison, a compile's proof and a run, and the card that tells of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from refed_dspy import annotate, share
from refed_dspy.errors import ReferencesError, RunDirError
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.optimizers.by_people import COMPILED, PAIRS, UNCOMPILED, JudgedPair
from refed_dspy.plugins.judge.corrected import people_gain
from refed_dspy.runs.result import Synthesis
from tests.plugins.share.conftest import comparison, copy_run, filtered_run
from tests.support.annotators import annotated
from tests.support.command_line import refed, refusal
from tests.support.said import Said

__all__ = ["comparison", "filtered_run"]


@pytest.fixture
def compiled(tmp_path: Path) -> Path:
    """A compile's folder: 60 pairs of 30 references. The judge prefers the compiled program's in two of three; people,
    as what the answers say tells, in nine of ten of those and in half of the others."""
    folder = tmp_path / "compiled"
    with Ledger.create(folder) as ledger:
        ledger.set_meta(work="compile")
    pairs = [
        JudgedPair.of(
            f"Task {n}.",
            (COMPILED, f"{n} {'good' if (n % 10 if n % 3 else n % 2) else 'bad'}"),
            (UNCOMPILED, f"{n} middling"),
            2 if n % 3 else -1,
            f"reference {n // 2}",
        )
        for n in range(60)
    ]
    (folder / PAIRS).write_text("".join(f"{pair.model_dump_json()}\n" for pair in pairs), encoding="utf-8")
    return folder


def better(pair: Mapping[str, str]) -> str:
    ranks = [next(at for at, word in enumerate(("good", "middling", "bad")) if word in pair[side]) for side in "AB"]
    return "A" if ranks[0] < ranks[1] else "B"


def asked(source: Path, pages: Path, count: int, decide: Callable[[Mapping[str, str]], str] = better) -> Path:
    """The folder of one person's page, with their verdicts."""
    made = annotate(source, pages, pairs=count, annotators=1)
    annotated(made.files[0], decide)
    return made.folder


def test_one_person_corrects_the_judge_of_a_proof(said: Said, compiled: Path, tmp_path: Path) -> None:
    people = asked(compiled, tmp_path / "people", 40)
    (rate,) = people_gain(compiled, people).rates
    assert (rate.system, rate.pairs, rate.by_people) == (COMPILED, 60, 40)
    assert rate.judge is not None and rate.judge.mean == pytest.approx(2 / 3)
    assert rate.powered is not None and rate.weight is not None and 0 < rate.weight < 1
    told = refed("judge", "people", people, "--judged", compiled)
    assert told.exit_code == 0, told.output
    said(told.stdout)
    written = json.loads((compiled / "people.json").read_text())["rates"]
    assert written[0]["powered"]["mean"] == rate.powered.mean and "Task" not in json.dumps(written)
    shown = refed("compile", "show", compiled).stdout
    assert f"gain in wins, by people and the judge: {rate.gain} (a tie is 0; people judged 40 of 60 pairs)" in shown


def test_each_program_of_a_comparison_has_its_rate(said: Said, comparison: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(comparison, tmp_path / "compared")
    made = people_gain(folder, asked(folder, tmp_path / "people", 12, lambda pair: min("AB", key=pair.__getitem__)))
    assert {(rate.system, rate.over) for rate in made.rates} == {
        (name, "instruction-only") for name in ("sample-level", "reference-level")
    }
    assert all(rate.judge is not None and rate.judge.mean == 0.5 and rate.powered is None for rate in made.rates)
    said(made.lines()[-2])


def test_the_card_says_what_people_preferred(said: Said, filtered_run: Synthesis, tmp_path: Path) -> None:
    folder = copy_run(filtered_run, tmp_path / "run")
    people = asked(folder, tmp_path / "people", 6, lambda _: "tie")
    assert "person" in (share(folder, tmp_path / "before").folder / "README.md").read_text()
    (rate,) = people_gain(folder, people).rates
    assert (rate.system, rate.over, rate.judge, rate.people.mean) == ("improved", "plain", None, 0.5)
    card = (share(folder, tmp_path / "after").folder / "README.md").read_text()
    said([line for line in card.splitlines() if "People" in line])
    (folder / "people.json").write_text("{")
    with pytest.raises(RunDirError):
        share(folder, tmp_path / "damaged")


def test_what_cannot_be_used_is_one_line(said: Said, compiled: Path, filtered_run: Synthesis, tmp_path: Path) -> None:
    people = asked(compiled, tmp_path / "people", 10)
    said(refusal(refed("judge", "people", people, "--judged", compiled, "--criteria", "tone")))
    said(refusal(refed("judge", "people", people, "--judged", tmp_path / "none")))
    with said.by(ReferencesError):
        people_gain(filtered_run.run_dir, people)
    (compiled / PAIRS).write_text("{}\n")
    with said.by(RunDirError):
        people_gain(compiled, people)
    (compiled / PAIRS).unlink()
    with said.by(RunDirError):
        annotate(compiled, tmp_path / "more", pairs=3)
    assert not (filtered_run.run_dir / "people.json").exists()
