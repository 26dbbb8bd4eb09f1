"""Training a judge: what is asked and paid for, what becomes better, and what must not."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import dspy
import pytest

from benchmarks.biased_judge import Bias, BiasedJudge
from refed_dspy.data.pairs import Pair
from refed_dspy.errors import ConfigError, RunDirError, RunStopped, TeacherRefused
from refed_dspy.ledger.states import state_in
from refed_dspy.plugins.judge.agree import measure_agreement
from refed_dspy.plugins.judge.settings import JudgeTrainingConfig
from refed_dspy.plugins.judge.trained_judge import TrainedJudge
from refed_dspy.plugins.judge.training.result import OUTPUTS, JudgeTraining
from refed_dspy.plugins.judge.training.spec import prepare
from refed_dspy.plugins.judge.training.train import train_judge
from refed_dspy.programs import PairwiseJudge
from refed_dspy.programs.load import open_judge, warn_of_another_teacher
from refed_dspy.programs.saved import MANIFEST
from refed_dspy.records import digest
from tests.optimizers.judge_training.conftest import BIASED
from tests.support.judged_pairs import judged_pairs, without_grades
from tests.support.said import Said
from tests.support.scripted_engine import Writer, fake_lm


def trained(pairs: Any, judge: BiasedJudge, out: Path, bias: Bias = BIASED, **settings: Any) -> JudgeTraining:
    return train_judge(pairs, judge.teacher(bias), out=out, progress=False, **settings)


def accuracy(made: JudgeTraining) -> tuple[float, float]:
    """On all that was held out, before and after."""
    assert made.report is not None
    change = made.report.sets[-1]
    assert change.before.accuracy is not None and change.after.accuracy is not None
    return change.before.accuracy.mean, change.after.accuracy.mean


def test_most_of_what_biases_cost_is_won_back_on_what_was_held_out(
    said: Said, made: JudgeTraining, people: list[Pair], judge: BiasedJudge, tmp_path: Path
) -> None:
    """On single sets, with people's own pairs: benchmarks.judge_training."""
    fair = replace(BIASED, position=0, length=0, style=0)
    unbiased = trained(people, judge, tmp_path, fair, grades=False)
    (before, after), (level, still) = accuracy(made), accuracy(unbiased)
    assert level - before > 0.1 and after - before >= 2 / 3 * (level - before)
    assert still >= level - 0.03
    report = made.report
    assert report is not None and report.proved
    said([change.name for change in report.sets])
    assert report.calibration_after.brier.mean < report.calibration_before.brier.mean - 0.03
    assert made.judgements.decided == made.pairs == 160


def test_verdicts_that_were_dealt_anew_teach_nothing(
    made: JudgeTraining,
    people: list[Pair],
    judge: BiasedJudge,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    said = [{"verdict": pair.verdict, "annotations": pair.annotations} for pair in people]
    random.Random(1).shuffle(said)
    anew = [pair.model_copy(update=new) for pair, new in zip(people, said, strict=True)]
    vain = trained(anew, judge, tmp_path, reuse=made.folder, grades=False)
    assert vain.report is not None and vain.report.gain is not None
    assert not vain.report.proved and abs(vain.report.gain.mean) < 0.1
    assert any(line.startswith("not proved: ") for line in vain.lines())
    warn_of_another_teacher(open_judge(vain.path), judge.teacher(BIASED)["model"])
    assert "its gain was never proved" in caplog.text


def test_pairs_that_the_prompts_were_tuned_on_are_left_out(said: Said, people: list[Pair], judge: BiasedJudge) -> None:
    program = PairwiseJudge()
    program.tuned_on = [digest(people[0].instruction)]
    spec = prepare(people, judge.teacher(BIASED), program, JudgeTrainingConfig())
    assert spec.left_out == 4 and people[0].instruction not in {pair.instruction for pair in spec.pairs}
    said(spec.notes(spec.pairs))


def test_a_trained_judge_remembers_what_its_prompts_were_tuned_on_too(people: list[Pair], judge: BiasedJudge) -> None:
    """So that no later training holds any of it out."""
    program = PairwiseJudge()
    program.tuned_on = [digest(pair.instruction) for pair in people[:60:4]]
    spec = prepare(people, judge.teacher(BIASED), program, JudgeTrainingConfig())
    train = {digest(pair.instruction) for pair in spec.held_out.train(spec.pairs)}
    assert train and spec.facts()["seen"] == sorted({*program.tuned_on, *train})


def test_grades_come_nearer_to_peoples(said: Said, made: JudgeTraining) -> None:
    assert made.report is not None
    everything = made.report.grades[-1]
    assert everything.answers > 100
    said(everything.name)
    assert everything.error_after.mean < everything.error_before.mean
    assert (everything.after.pearson or 0) > (everything.before.pearson or 0) + 0.1


def test_a_second_start_asks_nothing_and_writes_the_same(
    made: JudgeTraining, people: list[Pair], judge: BiasedJudge, tmp_path: Path
) -> None:
    folder, paid = tmp_path / "out", judge.requests
    shutil.copytree(made.folder, folder)
    again = trained(people, judge, folder)
    assert judge.requests == paid and again.calls == made.calls > 2 * 160  # in both orders, and the graded answers
    assert again.lines()[:-1] == made.lines()[:-1]
    for name in OUTPUTS:
        if name not in {"judge.json", "training.txt"}:  # these name a time and a folder
            assert (folder / name).read_bytes() == (made.folder / name).read_bytes(), name
    assert state_in(folder) == "done"


def test_the_trained_judge_is_one_file_that_says_what_it_is(
    made: JudgeTraining, people: list[Pair], judge: BiasedJudge, tmp_path: Path
) -> None:
    state = json.loads(made.path.read_text())
    manifest = state[MANIFEST]
    assert manifest["proof"]["proved"] is True and manifest["models"]["teacher"]["model"].startswith("openai/")
    assert set(state["corrections"]) == {"pairs", "grades"} and "127.0.0.1" not in made.path.read_text()
    loaded = open_judge(made.path)
    assert isinstance(loaded, TrainedJudge) and loaded.rubric is not None
    assert made.judge is not None and made.judge.tuned_on == loaded.tuned_on == manifest["seen"] != []
    teacher, paid = judge.teacher(BIASED), judge.requests
    measured = measure_agreement(people, teacher, tmp_path / "out", program=made.path, progress=False)
    assert judge.requests == paid + 320  # the questions are those of the judge without a correction
    rows = [json.loads(line) for line in (made.folder / "held-out.jsonl").read_text().splitlines()]
    assert measured.rows[-1].accuracy is not None and len(rows) > 80
    assert measured.rows[-1].accuracy.mean > accuracy(made)[0] + 0.1


@pytest.mark.slow
def test_another_seed_or_other_names_hold_out_others_at_no_cost(
    said: Said, made: JudgeTraining, people: list[Pair], judge: BiasedJudge, tmp_path: Path
) -> None:
    folder, paid = tmp_path / "out", judge.requests
    shutil.copytree(made.folder, folder)
    other = trained(people, judge, folder, held_out_criteria=["tone"], held_out_systems=["elk"], seed=3)
    assert judge.requests == paid
    assert (other.held_out.criteria, other.held_out.systems) == (("tone",), ("elk",))
    rows = [json.loads(line) for line in (folder / "held-out.jsonl").read_text().splitlines()]
    assert {row["criterion"] for row in rows if "unseen criteria" in row["sets"]} == {"tone"}
    assert not any(row["criterion"] == "tone" for row in rows if "new pairs" in row["sets"])
    with said.by(RunDirError):
        trained(people[:-1], judge, folder)


@pytest.mark.slow
def test_verdicts_of_an_agreement_are_used_again(people: list[Pair], judge: BiasedJudge, tmp_path: Path) -> None:
    teacher = judge.teacher(replace(BIASED, seed=5))
    measure_agreement(people, teacher, tmp_path / "agreement", progress=False)
    paid = judge.requests
    reuse = {"reuse": tmp_path / "agreement", "grades": False}
    again = trained(people, judge, tmp_path / "out", replace(BIASED, seed=5), **reuse)
    assert judge.requests == paid and again.judge is not None and again.cost == 0


def test_at_a_cap_nothing_is_trained_and_the_same_call_goes_on(
    said: Said, people: list[Pair], judge: BiasedJudge, tmp_path: Path
) -> None:
    bias, before = replace(BIASED, seed=7), judge.requests
    cut = trained(people, judge, tmp_path, bias, max_calls=100, grades=False)
    assert (cut.stopped, cut.judge, judge.requests - before) == ("max_calls", None, 100)
    assert not (tmp_path / "judge.json").exists()
    said(cut.lines()[-1])
    done = trained(people, judge, tmp_path, bias, max_calls=10_000, grades=False)
    assert done.judge is not None and judge.requests - before == done.calls == 320


@pytest.mark.parametrize(
    ("graded", "note"),
    [
        (4, "grades: too few to learn from: 8 graded answers, of 40 that it takes"),
        (20, "grades: too few to learn from: 19 graded answers to train on, of 20 that it takes"),
    ],
)
def test_few_grades_are_told_and_not_asked_for(people: list[Pair], judge: BiasedJudge, graded: int, note: str) -> None:
    pairs = [*people[:graded], *without_grades(people[graded:])]
    spec = prepare(pairs, judge.teacher(BIASED), None, JudgeTrainingConfig())
    assert spec.answers(pairs) == [] and note in spec.notes(pairs)
    assert not any("grades" in line for line in spec.notes(without_grades(pairs)))
    assert not any(
        "grades" in line for line in prepare(people, judge.teacher(BIASED), None, spec.settings).notes(people)
    )


@pytest.mark.slow
def test_few_grades_cost_nothing(people: list[Pair], judge: BiasedJudge, tmp_path: Path) -> None:
    made = trained([*people[:20], *without_grades(people[20:])], judge, tmp_path)
    assert made.judge is not None and made.judge.rubric is None and made.calls == 320
    assert any(line.startswith("grades: too few to learn from: 19 ") for line in made.lines())


@pytest.mark.slow
def test_grades_that_the_judge_does_not_give_are_told_of(said: Said, people: list[Pair], tmp_path: Path) -> None:
    writer = Writer()
    says = {"grade": {"reason": "hm", "grade": "cannot tell"}, "verdict": {"reason": "hm", "verdict": "A=B"}}
    writer.on_request = lambda request: json.dumps(says["grade" if "grade" in writer.fields(request) else "verdict"])
    made = train_judge(people[:60], fake_lm(writer), out=tmp_path, progress=False)
    (note,) = [line for line in made.lines() if line.startswith("grades: ")]
    said(note)


@pytest.mark.slow
def test_one_annotators_verdicts_are_told(people: list[Pair], judge: BiasedJudge, tmp_path: Path) -> None:
    alone = [
        pair.model_copy(update={"annotations": {"ann": next(iter(pair.annotations.values()))}})
        for pair in without_grades(people)
    ]
    assert any(line.startswith("one annotator: ") for line in trained(alone, judge, tmp_path).lines())


@pytest.mark.parametrize("verdict", ["cannot tell", "A=B"])
def test_a_judge_that_decides_nothing_is_no_judge(said: Said, people: list[Pair], tmp_path: Path, verdict: str) -> None:
    writer = Writer()
    writer.on_request = lambda _: json.dumps({"reason": "hm", "verdict": verdict})
    pairs = without_grades(people)[:60]
    if verdict == "A=B":  # it decided: everything is a tie
        made = train_judge(pairs, fake_lm(writer), out=tmp_path, progress=False)
        assert made.report is not None and not made.report.proved
        return
    with said.by(RunStopped) as stopped:
        train_judge(pairs, fake_lm(writer), out=tmp_path, progress=False)
    assert "\n" not in str(stopped.value) and not (tmp_path / "judge.json").exists()


def test_a_judge_that_is_not_there_is_bad_input(people: list[Pair], tmp_path: Path) -> None:
    gone = {"model": "openai/x", "api_base": "http://127.0.0.1:9/v1", "retries": 0, "timeout": 1}
    with pytest.raises(TeacherRefused):
        train_judge(without_grades(people), gone, out=tmp_path, progress=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pairs": judged_pairs(5, 4)}, "20 pairs of 5 instructions are too few to train a judge and to hold any out"),
        ({"held_out_criteria": ["wit"]}, "held_out_criteria: nobody judged by 'wit'; there are: accuracy, clarity"),
        ({"held_out_systems": ["emu"]}, "held_out_systems: no answer is by 'emu'; there are: ant, bee"),
        ({"held_out_systems": ["ant", "bee", "cat", "dog"]}, "only 0 are left to train on"),
        ({"held_out": 0.9}, "held_out: "),
        ({"program": dspy.Predict("a -> b")}, "program: got a Predict"),
        ({"scorer": {"model": "x", "api_base": "nowhere"}}, "scorer: api_base nowhere"),
        ({"optimizer": "bootstrap", "pairs": judged_pairs(14, 4)}, "are too few to compile the prompts"),
    ],
)
def test_bad_input_is_one_line_and_costs_nothing(
    people: list[Pair], judge: BiasedJudge, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    before = judge.requests
    settings = {"pairs": people, **change}
    with pytest.raises(ConfigError) as refused:
        trained(settings.pop("pairs"), judge, tmp_path / "out", **settings)
    assert message in str(refused.value) and "\n" not in str(refused.value)
    assert judge.requests == before and not (tmp_path / "out").exists()
