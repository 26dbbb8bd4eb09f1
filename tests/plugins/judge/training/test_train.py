"""Training a judge: what is asked and paid for, what becomes better, and what must not."""

from __future__ import annotations

import json
import random
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import dspy
import pytest

from benchmarks.biased_judge import Bias, BiasedJudge
from refed_dspy.data.pairs import Pair
from refed_dspy.errors import ConfigError, RunStopped, TeacherRefused
from refed_dspy.plugins.judge.agree import measure_agreement
from refed_dspy.plugins.judge.settings import JudgeTrainingConfig
from refed_dspy.plugins.judge.trained_judge import TrainedJudge
from refed_dspy.plugins.judge.training.result import JudgeTraining
from refed_dspy.plugins.judge.training.spec import CRITERIA, PAIRS, SYSTEMS, prepare
from refed_dspy.plugins.judge.training.train import train_judge
from refed_dspy.programs import PairwiseJudge
from refed_dspy.programs.load import open_judge, warn_of_another_teacher
from refed_dspy.programs.saved import MANIFEST
from refed_dspy.records import digest
from tests.plugins.judge.training.conftest import BIASED
from tests.support.judged_pairs import judged_pairs, without_grades, written
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


def test_what_biases_cost_is_won_back_on_what_was_held_out_and_grades_come_nearer_to_peoples(
    made: JudgeTraining,
) -> None:
    before, after = accuracy(made)
    report = made.report
    assert after > before + 0.05 and report is not None and report.proved
    assert [change.name for change in report.sets[:-1]] == [PAIRS, CRITERIA, SYSTEMS]
    assert report.calibration_after.brier.mean < report.calibration_before.brier.mean - 0.03
    assert made.judgements.decided == made.pairs == 160
    everything = report.grades[-1]
    assert everything.answers > 100
    assert everything.error_after.mean < everything.error_before.mean
    assert (everything.after.pearson or 0) > (everything.before.pearson or 0) + 0.1


@pytest.mark.slow
def test_most_of_what_biases_cost_is_won_back(
    made: JudgeTraining, people: list[Pair], judge: BiasedJudge, tmp_path: Path
) -> None:
    """On single sets, with people's own pairs: benchmarks.judge_training."""
    fair = replace(BIASED, position=0, length=0, style=0)
    unbiased = trained(people, judge, tmp_path, fair, grades=False)
    (before, after), (level, still) = accuracy(made), accuracy(unbiased)
    assert level - before > 0.1 and after - before >= 2 / 3 * (level - before)
    assert still >= level - 0.03


@pytest.mark.usefixtures("two_strengths")
def test_verdicts_that_were_dealt_anew_teach_nothing(
    said: Said,
    made: JudgeTraining,
    people: list[Pair],
    judge: BiasedJudge,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    told = [{"verdict": pair.verdict, "annotations": pair.annotations} for pair in people]
    random.Random(1).shuffle(told)
    anew = [pair.model_copy(update=new) for pair, new in zip(people, told, strict=True)]
    vain = trained(anew, judge, tmp_path, reuse=made.folder, grades=False)
    assert vain.report is not None and vain.report.gain is not None
    assert not vain.report.proved and abs(vain.report.gain.mean) < 0.1
    said(vain.lines()[:-1])
    warn_of_another_teacher(open_judge(vain.path), judge.teacher(BIASED)["model"])
    said(caplog.messages[-1])


def test_pairs_that_the_prompts_were_tuned_on_are_left_out_and_remembered(
    said: Said, people: list[Pair], judge: BiasedJudge
) -> None:
    """So that no later training holds any of it out."""
    program = PairwiseJudge()
    program.tuned_on = [digest(people[0].instruction)]
    spec = prepare(people, judge.teacher(BIASED), program, JudgeTrainingConfig())
    assert spec.left_out == 4 and people[0].instruction not in {pair.instruction for pair in spec.pairs}
    said(spec.notes(spec.pairs))
    train = {digest(pair.instruction) for pair in spec.held_out.train(spec.pairs)}
    assert train and spec.facts()["seen"] == sorted({*program.tuned_on, *train})


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
    made: JudgeTraining, people: list[Pair], judge: BiasedJudge, tmp_path: Path
) -> None:
    folder, paid = tmp_path / "out", judge.requests
    shutil.copytree(made.folder, folder)
    other = trained(people, judge, folder, held_out_criteria=["tone"], held_out_systems=["elk"], seed=3)
    assert judge.requests == paid
    assert (other.held_out.criteria, other.held_out.systems) == (("tone",), ("elk",))
    rows = [json.loads(line) for line in (folder / "held-out.jsonl").read_text().splitlines()]
    assert {row["criterion"] for row in rows if CRITERIA in row["sets"]} == {"tone"}
    assert not any(row["criterion"] == "tone" for row in rows if PAIRS in row["sets"])


@pytest.mark.slow
def test_verdicts_of_an_agreement_are_used_again(people: list[Pair], judge: BiasedJudge, tmp_path: Path) -> None:
    teacher = judge.teacher(replace(BIASED, seed=5))
    measure_agreement(people, teacher, tmp_path / "agreement", progress=False)
    paid = judge.requests
    reuse = {"reuse": tmp_path / "agreement", "grades": False}
    again = trained(people, judge, tmp_path / "out", replace(BIASED, seed=5), **reuse)
    assert judge.requests == paid and again.judge is not None and again.cost == 0


@pytest.mark.parametrize("graded", [4, 20])
def test_few_grades_are_told_and_not_asked_for(said: Said, people: list[Pair], judge: BiasedJudge, graded: int) -> None:
    pairs = [*people[:graded], *without_grades(people[graded:])]
    spec = prepare(pairs, judge.teacher(BIASED), None, JudgeTrainingConfig())
    assert spec.answers(pairs) == []
    said(sorted({*spec.notes(pairs)} - {*spec.notes(without_grades(pairs))}))
    whole = prepare(people, judge.teacher(BIASED), None, spec.settings)
    assert whole.notes(people) == whole.notes(without_grades(people))


@pytest.mark.slow
def test_grades_that_the_judge_does_not_give_and_one_annotators_verdicts_are_told_of(
    said: Said, people: list[Pair], tmp_path: Path
) -> None:
    writer = Writer()
    says = {"grade": {"reason": "hm", "grade": "cannot tell"}, "verdict": {"reason": "hm", "verdict": "A=B"}}
    writer.on_request = lambda request: json.dumps(says["grade" if "grade" in writer.fields(request) else "verdict"])
    said(train_judge(people[:60], fake_lm(writer), out=tmp_path / "all", progress=False).notes)
    alone = [
        pair.model_copy(update={"annotations": {"ann": next(iter(pair.annotations.values()))}})
        for pair in without_grades(people[:60])
    ]
    said(train_judge(alone, fake_lm(writer), out=tmp_path / "one", progress=False).notes)


@pytest.mark.parametrize("verdict", ["cannot tell", pytest.param("A=B", marks=pytest.mark.slow)])
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
    "change",
    [
        {"pairs": judged_pairs(5, 4)},
        {"held_out_criteria": ["wit"]},
        {"held_out_systems": ["emu"]},
        {"held_out_systems": ["ant", "bee", "cat", "dog"]},
        {"held_out": 0.9},
        {"program": dspy.Predict("a -> b")},
        {"scorer": {"model": "x", "api_base": "nowhere"}},
        {"optimizer": "bootstrap", "pairs": judged_pairs(14, 4)},
    ],
    ids=lambda change: " ".join(change),
)
def test_bad_input_is_one_line_and_costs_nothing(
    said: Said, people: list[Pair], judge: BiasedJudge, tmp_path: Path, change: dict[str, Any]
) -> None:
    before = judge.requests
    settings = {"pairs": people, **change}
    with said.by(ConfigError) as refused:
        trained(settings.pop("pairs"), judge, tmp_path / "out", **settings)
    assert "\n" not in str(refused.value)
    assert judge.requests == before and not (tmp_path / "out").exists()


# --- a trained judge that is a ruler says so, and one that is more is proved all the same


AT_RANDOM, LONGER, USEFUL = Bias(skill=0.0), Bias(skill=0.0, length=4.0), Bias(skill=1.5, length=1.0, position=1.5)


def people_who_prefer_longer(share: float) -> list[Pair]:
    """In `share` of the pairs the answer that they prefer is the longer one; which, nothing else tells."""
    rng, made = random.Random(f"longer {share}"), []
    for pair in without_grades(judged_pairs(48, 4, annotators=1)):
        longer = 1.0 if len(pair.answer_a) > len(pair.answer_b) else -1.0
        verdict = longer if rng.random() < share else -longer
        said = {name: each.model_copy(update={"verdict": verdict}) for name, each in pair.annotations.items()}
        made.append(pair.model_copy(update={"verdict": verdict, "annotations": said}))
    return made


def trained_to_measure(share: float, bias: Bias, folder: Path) -> JudgeTraining:
    pairs = people_who_prefer_longer(share)
    with BiasedJudge(written(folder / "people.json", pairs)) as judge:
        return train_judge(pairs, judge.teacher(bias), out=folder / "out", progress=False)


@pytest.mark.usefixtures("two_strengths")
@pytest.mark.parametrize(
    "bias", [pytest.param(AT_RANDOM, marks=pytest.mark.slow), LONGER], ids=["at random", "by length"]
)
def test_a_judge_that_learned_to_measure_length_is_not_proved_and_says_so_first(
    said: Said, bias: Bias, tmp_path: Path
) -> None:
    made = trained_to_measure(0.95, bias, tmp_path)
    assert made.report is not None and made.report.length is not None and not made.report.proved
    first, *others = made.lines()
    # Without the figures of the fit, which versions of scikit-learn make otherwise.
    said([re.sub(r"-?\d\.\d\d(?!\d)", "…", line) for line in (first, others[0], *others[-3:-1])])
    carried = made.report.carried
    assert made.report.idle == others[0]
    assert carried["length"] > 0.3 > 0.1 > abs(carried["the judge's verdict"]) or bias == LONGER, (
        "that one knows length"
    )
    trained = made.report.sets[-1].after.accuracy
    assert trained is not None and sum(carried.values()) == pytest.approx(trained.mean - 0.5)
    assert (made.folder / "training.txt").read_text().startswith(first) and first in made._repr_html_()
    assert json.loads((made.folder / "training.json").read_text())["report"]["ruler"] == first
    assert json.loads(made.path.read_text())["refed"]["proof"]["proved"] is False


@pytest.mark.slow
def test_a_judge_that_knows_more_than_length_is_proved(said: Said, tmp_path: Path) -> None:
    made = trained_to_measure(0.75, USEFUL, tmp_path)
    report = made.report
    assert report is not None and report.length is not None and report.length.accuracy is not None
    assert report.length.accuracy.low > 0.55, "length tells something here, too"
    assert report.proved and report.ruler == "" and report.idle == ""
    assert report.carried["the judge's verdict"] > report.carried["length"] > 0.05
    said(made.lines()[:-1])


def test_at_a_cap_nothing_is_trained(said: Said, people: list[Pair], judge: BiasedJudge, tmp_path: Path) -> None:
    before = judge.requests
    cut = trained(people, judge, tmp_path, replace(BIASED, seed=7), max_calls=100, grades=False)
    assert (cut.stopped, cut.judge, judge.requests - before) == ("max_calls", None, 100)
    assert not (tmp_path / "judge.json").exists()
    said(cut.lines()[-1])
