"""The beginning of paid work: what is written, what is refused, and that a refusal writes nothing."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from refed_dspy import TeacherConfig
from refed_dspy.errors import ConfigError, ExportError, RunDirError, RunStopped
from refed_dspy.jobs.job import job
from refed_dspy.jobs.work import CapSettings, Work
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.statements import Answer, Key, answered
from refed_dspy.ledger.states import End, last_end
from refed_dspy.records import PICO, Reference
from refed_dspy.teachers import open_teacher
from tests.support.refusals import refusal
from tests.support.said import Said
from tests.support.scripted_engine import Writer, fake_lm

PRICED = TeacherConfig(model="openai/sim", api_base="http://127.0.0.1:9/v1", price="openai/gpt-4o-mini")
NO_CAPS = CapSettings(max_cost=None, max_calls=None, max_minutes=None)


def work(**changes: Any) -> Work:
    models = {"teacher": open_teacher(fake_lm(Writer()))}
    return Work(**{"kind": "testing", "identity": {"seed": 1}, "models": models, "size": 3, "caps": NO_CAPS, **changes})


def started(folder: Path, of: Work) -> int:
    """A start that ends at once. Returns its size."""
    with job(folder, of) as at:
        return at.begin().size


def answer_once(folder: Path) -> None:
    with Ledger.create(folder) as ledger:
        ledger.commit(answered(Key("s", "1", 0, "k"), Answer("{}"), "e", []))


def stored(folder: Path, *names: str) -> list[Any]:
    with Ledger.read(folder) as ledger:
        return [ledger.meta(name) for name in names]


def starts(folder: Path) -> int:
    with Ledger.read(folder) as ledger:
        return int(ledger.db.execute("SELECT count(*) FROM starts").fetchone()[0])


def test_the_first_start_writes_all_of_it_and_a_later_one_what_may_change(tmp_path: Path) -> None:
    references = [Reference(instruction="i", response="r", source="here row 1")]
    started(tmp_path, work(references=references, facts={"track": None}))
    assert stored(tmp_path, "work", "identity", "size", "track") == ["testing", {"seed": 1}, 3, None]
    answer_once(tmp_path)
    assert started(tmp_path, work(size=5, facts={"track": True}, references=references)) == 5
    assert stored(tmp_path, "identity", "size", "track") == [{"seed": 1}, 5, True]
    with Ledger.read(tmp_path) as ledger:
        assert ledger.references() == references
    assert starts(tmp_path) == 2


def test_what_came_to_nothing_gives_way_to_other_settings(tmp_path: Path) -> None:
    started(tmp_path, work(facts={"left": "over"}))
    started(tmp_path, work(identity={"seed": 2}))
    assert stored(tmp_path, "identity", "left") == [{"seed": 2}, None]


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "filtering"},
        {"identity": {"seed": 2}},
        {"identity": {"seed": 1, "teacher": {"temperature": 2}}},
        {"identity": {"seed": 2}, "other": "others", "way_out": "go"},
        {"identity": {"a": 1, "b": 2}, "most_changes": 1},
        {"reuse": Path("nowhere")},
    ],
    ids=str,
)
def test_a_refusal_names_what_differs_and_writes_nothing(said: Said, tmp_path: Path, changes: dict[str, Any]) -> None:
    started(tmp_path, work())
    answer_once(tmp_path)
    said(refusal(RunDirError, started, tmp_path, work(**{**changes, "size": 9})))
    assert stored(tmp_path, "work", "identity", "size") == ["testing", {"seed": 1}, 3] and starts(tmp_path) == 1


def test_a_cap_that_cannot_be_kept_leaves_no_folder_and_no_trace(said: Said, tmp_path: Path) -> None:
    folder = tmp_path / "new"
    capped = work(caps={**NO_CAPS, "max_cost": 5.0})
    said(refusal(ConfigError, started, folder, capped))
    assert not folder.exists()
    started(folder, work())
    refusal(ConfigError, started, folder, capped)
    assert stored(folder, "max_cost") == [None] and starts(folder) == 1
    kept = replace(capped, models={"teacher": open_teacher(PRICED)})
    said(refusal(ConfigError, started, folder, replace(kept, caps={**NO_CAPS, "max_cost": 1e-6})))
    with job(folder, kept) as at:
        assert at.begin().caps_left.caps.max_cost == 5 * PICO
    with job(folder, replace(kept, caps={**NO_CAPS, "max_cost": math.inf})) as at:
        assert at.begin().caps_left.caps.max_cost is None


# --- how it ends


def ends(folder: Path) -> tuple[str, str]:
    with Ledger.read(folder) as ledger:
        return last_end(ledger)[:2]


@pytest.mark.parametrize(
    ("answers", "raised", "seen"),
    [
        (False, ExportError("full"), ExportError),
        (True, ExportError("full"), RunStopped),
        (True, ConfigError("no such key"), ConfigError),
    ],
)
def test_a_result_that_cannot_be_written_is_no_bad_input_once_there_are_answers(
    tmp_path: Path, answers: bool, raised: Exception, seen: type[Exception]
) -> None:
    started(tmp_path, work())
    assert ends(tmp_path) == ("done", "")
    if answers:
        answer_once(tmp_path)
    with pytest.raises(seen, match=str(raised)) as told, job(tmp_path, work()):
        assert ends(tmp_path)[0] == "killed", "until it says how it ended"
        raise raised
    assert type(told.value) is seen and ends(tmp_path) == ("stopped", str(raised))


def test_an_end_that_was_written_stands_whatever_comes_after_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="later"), job(tmp_path, work()) as at:
        at.ends(end := End("at its cap", "why"))
        raise ValueError("later")
    assert ends(tmp_path) == end[:2]
