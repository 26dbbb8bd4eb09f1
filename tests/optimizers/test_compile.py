"""Compile end to end, in process, in the simulated world of benchmarks/preference.py."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import dspy
import pytest
from dspy.lm15 import Request, Response
from dspy.utils import exceptions as lm_errors

from benchmarks.optimization import silence
from benchmarks.preference import WISHES, Preference, World, model
from refed_dspy import TeacherConfig, load_program, open_program
from refed_dspy import compile as tune
from refed_dspy.data.pairs import Pair
from refed_dspy.errors import InputError, RunDirError, RunStopped
from refed_dspy.ledger.candidates import Trial, trials
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.optimizers.progress import CompileProgress
from refed_dspy.optimizers.result import Compiled
from refed_dspy.programs import PairwiseJudge, ReferenceLevelFeedback
from refed_dspy.programs.saved import MANIFEST, program_digests, program_state
from tests.support.scripted_engine import response

PREFERENCE = Preference(0)
REFERENCES = PREFERENCE.references(6)
SETS = {"train": 2, "validation": 2, "test": 2}
QUESTIONS = [dspy.Example(question=f"question number {n}").with_inputs("question") for n in range(6)]


class Watched(World):
    """The world, and what it was asked in which phase. `answer` may answer instead of it."""

    def __init__(self) -> None:
        super().__init__(PREFERENCE)
        self.asked: list[tuple[str, str]] = []
        self.progress: CompileProgress | None = None
        self.answer: Callable[[str, list[str]], str | Exception | None] = lambda text, fields: None

    def complete(self, request: Request) -> Response:
        text = "\n".join(str(getattr(part, "text", "")) for m in request.messages for part in m.parts)
        fields = list(((request.config.response_format or {}).get("schema") or {}).get("properties", {}))
        self.asked.append((self.progress.phase if self.progress else "", f"{request.system}\n{text}\n{fields}"))
        said = self.answer(text, fields)
        if isinstance(said, Exception):
            raise said
        return response(said) if said is not None else super().complete(request)

    def follow(self, progress: CompileProgress) -> None:
        self.progress = progress


def compiled(folder: Path, program: Any, examples: Any, world: World | None = None, **more: Any) -> Compiled:
    world = world or Watched()
    given: dict[str, Any] = {
        "teacher": model(world),
        "judge": model(world, 0.0),
        "reflection": model(world),
        "out": folder,
        "optimizer": "bootstrap",
        "evaluations": 6,
        "threads": 2,
        "instructions_per_feature": 1,
        "track": False,
        **SETS,
        "on_progress": world.follow if isinstance(world, Watched) else None,
    }
    with silence():
        return tune(program, examples, **{**given, **more})


def refed(per_feature: int = 7) -> ReferenceLevelFeedback:
    return ReferenceLevelFeedback({"subject": "what it is about"}, per_feature)


ONE_CRITERION = {"criteria": {"clear": "one reading only"}}


def answerer() -> dspy.Module:
    return dspy.ChainOfThought("question -> response")


def marks(example: dspy.Example, prediction: Any, trace: Any = None) -> float:
    return 0.2 + 0.2 * sum(WISHES[wish] in prediction.response for wish in PREFERENCE.answers)


def ledger_of(folder: Path) -> list[Trial]:
    with Ledger.create(folder) as ledger:
        return trials(ledger)


# --- every optimizer on our own program

OPTIONS: dict[str, dict[str, Any]] = {
    "bootstrap": {},
    "gepa": {},
    "mipro": {"num_candidates": 2, "num_trials": 1},
    "simba": {"bsize": 2, "num_candidates": 1, "max_steps": 1},
    "dspy.teleprompt.COPRO": {"breadth": 2, "depth": 1},
}


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", OPTIONS)
def test_an_optimizer_runs_and_never_sees_what_is_held_out(optimizer: str, tmp_path: Path) -> None:
    world, program = Watched(), refed()
    before = program_digests(program)
    made = compiled(
        tmp_path / "c",
        program,
        REFERENCES,
        world,
        optimizer=optimizer,
        options=OPTIONS[optimizer],
        metric=ONE_CRITERION,
    )
    held = [row for row in REFERENCES if not [1 for phase, text in world.asked if " test " not in phase and
                                              row["instruction"] in text]]  # fmt: skip
    assert len(held) == 2, "two references are in no question before the proof"
    assert all(any(row["instruction"] in text for _, text in world.asked) for row in held)
    check_program(made, program, before)
    check_folder(made, optimizer)
    if optimizer in {"bootstrap", "gepa"}:  # the others ask the same again on purpose
        assert max(Counter(text for _, text in world.asked).values()) == 1, "nothing is asked twice"


def check_program(made: Compiled, given: ReferenceLevelFeedback, before: dict[str, str]) -> None:
    assert isinstance(made.program, ReferenceLevelFeedback)
    assert program_digests(given) == before and given.instructions_per_feature == 7, "what was given is left alone"
    assert made.program.instructions_per_feature == 7 and made.program.features == given.features
    assert made.program._compiled is False and all(p.lm is None for p in made.program.predictors())
    assert made.changed is (program_digests(made.program) != before)


def check_folder(made: Compiled, optimizer: str) -> None:
    state = json.loads(made.path.read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert all(
        part.get("lm") is None and not part["traces"] for name, part in state.items() if name in made.program.__dict__
    )
    assert {path.name for path in made.folder.iterdir()} == {
        *("program.json", "prompts.diff", "proof.txt", "ledger.sqlite", ".lock")
    }
    assert made.proof is not None and (made.folder / "proof.txt").read_text().splitlines() == made.proof.lines()
    again = open_program(made.path)
    assert program_digests(again) == program_digests(made.program) and again.instructions_per_feature == 7
    known = ledger_of(made.folder)
    assert [trial.seq for trial in known] == list(range(len(known))) and known[0].digest == made.manifest["baseline"]
    assert set(known[0].scores) >= {"validation", "test"} and made.manifest["optimizer"] == optimizer
    assert len(known[0].scores["validation"]) == len(known[0].scores["test"]) == 2


def test_the_same_seed_in_the_same_world_makes_the_same_program(tmp_path: Path) -> None:
    made = [
        compiled(tmp_path / str(n), answerer(), QUESTIONS, metric=of_five, seed=3, optimizer="gepa", evaluations=16)
        for n in range(2)
    ]
    assert made[0].changed and program_state(made[0].program) == program_state(made[1].program)
    assert made[0].manifest["validation"] == made[1].manifest["validation"] and made[0].proof == made[1].proof


@pytest.mark.slow
def test_a_second_start_pays_for_nothing_and_comes_to_the_same(tmp_path: Path) -> None:
    world = Watched()
    first = compiled(tmp_path / "c", refed(), REFERENCES, world, metric=ONE_CRITERION)
    asked = world.requests
    second = compiled(tmp_path / "c", refed(), REFERENCES, world, metric=ONE_CRITERION)
    assert world.requests == asked and second.manifest["calls"] == first.manifest["calls"] == asked
    assert program_state(second.program) == program_state(first.program) and second.proof == first.proof


def test_another_compile_in_the_same_folder_is_refused_with_the_difference(tmp_path: Path) -> None:
    world = Watched()
    compiled(tmp_path / "c", answerer(), QUESTIONS, world, metric=marks)
    asked = world.requests
    with pytest.raises(RunDirError, match="holds another compile: evaluations was 6, is 9; set these back"):
        compiled(tmp_path / "c", answerer(), QUESTIONS, world, metric=marks, evaluations=9)
    assert world.requests == asked


# --- programs of other kinds


def of_two(example: Any, prediction: Any) -> float:
    return marks(example, prediction)


def of_five(gold: Any, pred: Any, trace: Any = None, pred_name: str | None = None, pred_trace: Any = None) -> Any:
    return dspy.Prediction(score=marks(gold, pred), feedback=f"It does not {PREFERENCE.answers[0]}. <{pred_name}>")


@pytest.mark.parametrize("metric", [of_two, marks, of_five])
def test_any_program_with_a_metric_of_two_three_or_five_arguments(metric: Any, tmp_path: Path) -> None:
    world = Watched()
    made = compiled(tmp_path / "c", answerer(), QUESTIONS, world, metric=metric, optimizer="gepa", evaluations=12)
    told = [text for _, text in world.asked if "<predict>" in text]
    assert bool(told) is (metric is of_five), "words of its own reach the model that rewrites"
    assert isinstance(made.program, dspy.ChainOfThought) and made.manifest["kind"] == "ChainOfThought"
    assert f".{metric.__name__} " in made.manifest["metric"] and made.proof is not None


def test_a_program_that_gains_is_what_is_kept(tmp_path: Path) -> None:
    """The dotted name is a class of this module: it states what the judge looks for."""
    made = compiled(tmp_path / "c", answerer(), QUESTIONS, metric=marks, optimizer=f"{__name__}.Knows")
    assert made.changed and made.proof is not None and made.proof.gain.mean > 0.3
    assert PREFERENCE.answers[0] in made.program.predictors()[0].signature.instructions
    assert f"+Always {PREFERENCE.answers[0]}." in made.diff()
    assert made.manifest["validation"]["compiled"] > made.manifest["validation"]["uncompiled"]
    again = compiled(tmp_path / "again", made.program, QUESTIONS, metric=marks)
    assert again.manifest["validation"]["uncompiled"] == pytest.approx(made.manifest["validation"]["compiled"], abs=0.2)
    assert program_digests(again.program) == program_digests(made.program)
    fresh = answerer()
    load_program(fresh, made.path)
    assert program_digests(fresh) == program_digests(made.program)


class Knows:
    """An optimizer in DSPy's shape that knows the secret, and keeps what it was given."""

    given: tuple[list[Any], list[Any]] = ([], [])

    def __init__(self, metric: Any) -> None:
        self.metric = metric

    def compile(self, student: dspy.Module, *, trainset: list[Any], valset: list[Any]) -> dspy.Module:
        type(self).given = (trainset, valset)
        program = student.deepcopy()
        predictor = program.predictors()[0]
        wishes = "".join(f"\nAlways {wish}." for wish in PREFERENCE.answers)
        predictor.signature = predictor.signature.with_instructions(predictor.signature.instructions + wishes)
        program._compiled = True
        return program


def test_an_optimizer_is_given_train_and_validation_alone(tmp_path: Path) -> None:
    made = compiled(tmp_path / "c", answerer(), QUESTIONS, metric=marks, optimizer=f"{__name__}.Knows")
    train, held = ({example.question for example in part} for part in Knows.given)
    assert len(train) == len(held) == 2 and not train & held
    assert made.manifest["sets"] == SETS and len(made.manifest["seen"]) == 4


def test_a_registered_search_by_its_dotted_name(tmp_path: Path) -> None:
    name = "dspy.BootstrapFewShotWithRandomSearch"
    options = {"num_candidate_programs": 1, "max_labeled_demos": 1}
    made = compiled(tmp_path / "c", answerer(), QUESTIONS, metric=marks, optimizer=name, options=options)
    assert made.manifest["optimizer"] == name and made.manifest["options"] == {k: str(v) for k, v in options.items()}
    assert len(ledger_of(made.folder)) > 1


def test_a_bare_predict_is_a_program_too(tmp_path: Path) -> None:
    made = compiled(tmp_path / "c", dspy.Predict("question -> response"), QUESTIONS, metric=marks)
    assert made.proof is not None


# --- judges


def pair(number: int, criterion: str) -> Pair:
    good = PREFERENCE.references(1)[0]["response"]
    return Pair(
        instruction=f"Task {number}.",
        answer_a=good if number % 2 else "plain",
        answer_b="plain" if number % 2 else good,
        verdict=1.0 if number % 2 else -1.0,
        criterion=criterion,
        description=f"what {criterion} means",
    )


def test_a_judge_is_tuned_on_pairs_and_proved_on_criteria_it_never_saw(tmp_path: Path) -> None:
    pairs = [pair(n, criterion) for n in range(6) for criterion in ("depth", "style")]
    world = Watched()
    made = compiled(tmp_path / "c", PairwiseJudge(), pairs, world, held_out_criteria=["style"], optimizer="gepa")
    assert isinstance(made.program, PairwiseJudge) and made.proof is not None
    assert made.manifest["sets"] == {"train": 2, "validation": 2, "test": 4}
    assert made.proof.compiled.score.mean == 1 and made.proof.compiled.parts == {"consistent": 1.0}
    seen = [text for phase, text in world.asked if " test " not in phase]
    assert seen and not [text for text in seen if "what style means" in text]
    assert sum("what style means" in text for _, text in world.asked) == 4, "two pairs, in both orders, once"


# --- the estimate


def test_an_estimate_pays_for_the_validation_set_alone_and_the_compile_goes_on(tmp_path: Path) -> None:
    world = Watched()
    made = compiled(tmp_path / "c", answerer(), QUESTIONS, world, metric=marks, estimate_only=True)
    assert world.requests == 2 and made.proof is None and not made.changed
    assert made.estimate["calls"] > 2 and made.estimate["cost"] is None, "the price is unknown"
    said = made.estimate_lines()
    assert len(said) == 3 and "dollars unknown" in said[1] and "without --estimate" in said[2]
    whole = compiled(tmp_path / "c", answerer(), QUESTIONS, world, metric=marks)
    assert whole.proof is not None and world.requests == 6, "train and test are new, validation is not"


# --- what a folder tells


def test_the_manifest_says_how_it_came_about(tmp_path: Path) -> None:
    world = Watched()
    made = compiled(tmp_path / "c", refed(), REFERENCES, world, seed=2, name="mine", metric=ONE_CRITERION)
    told = json.loads(made.path.read_text())[MANIFEST]
    assert (
        {k: told[k] for k in made.manifest} == made.manifest == json.loads(json.dumps(made.manifest, allow_nan=False))
    )
    assert told["versions"]["dspy"] == version("dspy") and told["versions"]["refed-dspy"] and told["versions"]["python"]
    assert told["models"] == {
        role: {"model": "sim/world", "endpoint": "sim"} for role in ("teacher", "judge", "reflection")
    }
    assert told["prompts"] == program_digests(made.program) and told["kind"] == "ReferenceLevelFeedback"
    assert (told["seed"], told["name"], told["sets"], told["stopped"]) == (2, "mine", SETS, "")
    assert told["features"] == {"subject": "what it is about"} and told["instructions_per_feature"] == 7
    assert told["calls"] == world.requests == sum(stage["calls"] for stage in told["usage"].values())
    assert told["metric"]["wins"] == 0.6 and told["cost"] is None and told["proof"]["gain"]["clusters"] == 2
    assert (len(told["seen"]) == 4 and told["candidate"] == told["baseline"]) or made.changed


def test_no_key_is_in_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key, address = "sk-live-0123456789", "http://127.0.0.1:9/v1"
    monkeypatch.setenv("KEY_OF_THE_JUDGE", key)
    judge = TeacherConfig(model="openai/judge", api_base=address, api_key_env="KEY_OF_THE_JUDGE")
    made = compiled(tmp_path / "c", answerer(), QUESTIONS, metric=marks, judge=judge)
    assert made.manifest["models"]["judge"] == {"model": "openai/judge", "endpoint": address}
    for path in made.folder.iterdir():
        assert key.encode() not in path.read_bytes(), path.name


def test_the_outcome_is_told_in_a_few_lines(tmp_path: Path) -> None:
    made = compiled(tmp_path / "c", answerer(), QUESTIONS, metric=lambda example, prediction: 0.5)
    said = made.lines()
    assert said[0] == "validation: 0.50 uncompiled, 0.50 compiled" and said[-1] == f"program: {made.path}"
    assert "no candidate was better than the uncompiled program, which is what is kept" in said
    assert any(line.startswith("not proved: ") for line in said) and any("price unknown, 8 calls" in s for s in said)
    assert all(line.isprintable() for line in said) and made.diff() == "no prompt changed\n"


@pytest.mark.slow
def test_a_file_that_cannot_be_written_leaves_no_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("refed_dspy.files.os.fsync", full)
        with pytest.raises(RunStopped, match=r"cannot be written .*No space left on device.*make room"):
            compiled(tmp_path / "c", answerer(), QUESTIONS, metric=marks)
    assert {path.name for path in (tmp_path / "c").iterdir()} == {"ledger.sqlite", ".lock"}
    assert compiled(tmp_path / "c", answerer(), QUESTIONS, metric=marks).path.is_file()


def test_the_least_that_can_be_compiled_leaves_json(tmp_path: Path) -> None:
    made = compiled(tmp_path / "c", answerer(), QUESTIONS[:3], metric=marks)
    json.loads(made.path.read_text(), parse_constant=pytest.fail)


# --- what is refused: before anything is written or paid for


def lacking(example: Any, prediction: Any) -> float:
    raise AssertionError("nobody is asked")


def bound() -> dspy.Module:
    program = answerer()
    program.set_lm(model(Watched()))
    return program


REFUSED: dict[str, tuple[Any, Any, dict[str, Any], str]] = {
    "no examples": (answerer, [], {}, "examples: a ChainOfThought is tuned on a list of dspy.Example"),
    "two examples": (answerer, QUESTIONS[:2], {}, "examples: 2 of them.*a compile needs 3"),
    "two references": (refed, REFERENCES[:2], {"metric": None}, "examples: 2 of them.*a compile needs 3"),
    "no references": (refed, [], {"metric": None}, "references"),
    "no metric": (answerer, QUESTIONS, {"metric": None}, "metric: pass one for a ChainOfThought"),
    "a metric's name": (answerer, QUESTIONS, {"metric": "accuracy"}, "metric: a str; pass a function"),
    "weights for another": (answerer, QUESTIONS, {"metric": {"wins": 1}}, "metric: pass one for a ChainOfThought"),
    "a wrong weight": (refed, REFERENCES, {"metric": {"win": 1}}, "metric.win: unknown key; did you mean wins"),
    "an LM of its own": (bound, QUESTIONS, {}, "program: predict has an LM of its own; pass the LM as teacher="),
    "no program": (dict, QUESTIONS, {}, "program: a dict; pass a dspy.Module"),
    "no predictor": (dspy.Module, QUESTIONS, {}, "program: a Module has no predictor to tune"),
    "no such file": (lambda: "none.json", REFERENCES, {"metric": None}, "program none.json: no such file"),
    "a wrong setting": (answerer, QUESTIONS, {"evaluation": 3}, "evaluation: unknown key; did you mean evaluations"),
    "too few": (answerer, QUESTIONS, {"evaluations": 0}, "evaluations: input should be greater"),
    "a wrong teacher": (answerer, QUESTIONS, {"teacher": 7}, "teacher: a int; pass a TeacherConfig"),
    "pairs of one": (PairwiseJudge, [pair(1, "depth")], {"metric": None}, "examples: 1 of them"),
}
# These need an optimizer, or caps, made ready.
REFUSED |= {
    "unknown optimizer": (answerer, QUESTIONS, {"optimizer": "gepaa"}, "none of bootstrap, gepa, mipro, simba"),
    "wrong option": (answerer, QUESTIONS, {"options": {"demos": 3}}, "optimizer bootstrap: .*demos"),
    "no such class": (answerer, QUESTIONS, {"optimizer": "dspy.Nope"}, "optimizer dspy.Nope: cannot be imp"),
    "a cap for an LM": (answerer, QUESTIONS, {"max_calls": 9}, "a dspy.LM retries by itself"),
}


def refused(folder: Path, program: Any, examples: Any, more: dict[str, Any], said: str) -> None:
    world = Watched()
    with pytest.raises(InputError, match=said) as raised:
        compiled(folder, program(), examples, world, **{"metric": lacking, **more})
    assert str(raised.value).isprintable()
    assert world.requests == 0 and not folder.exists()


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_used_is_refused_in_one_line_before_anything_is_written(case: str, tmp_path: Path) -> None:
    refused(tmp_path / "c", *REFUSED[case])


# --- what ends it


def test_a_program_that_makes_nothing_says_why(tmp_path: Path) -> None:
    world = Watched()
    world.answer = lambda text, fields: "no JSON" if "new_instructions" in fields else None
    with pytest.raises(RunStopped) as raised:
        compiled(tmp_path / "c", refed(), REFERENCES, world)
    assert str(raised.value) == (
        "the uncompiled program scored 0 on every validation example (2 malformed in instruction_synthesis): see to "
        "the models and their max_tokens first; what was asked is kept"
    )


def test_a_program_that_makes_everything_and_wins_nothing_can_be_tuned(tmp_path: Path) -> None:
    def strict(example: Any, prediction: Any) -> bool:
        return WISHES[PREFERENCE.answers[0]] in prediction.response

    made = compiled(tmp_path / "c", answerer(), QUESTIONS, metric=strict, optimizer=f"{__name__}.Knows")
    assert made.changed


@pytest.mark.parametrize("optimizer", ["bootstrap", "gepa", "mipro", "simba"])
def test_a_bug_in_a_metric_ends_it_as_it_is(optimizer: str, tmp_path: Path) -> None:
    """The bug shows on a training example alone, in the optimizer's hands."""
    error, calls = KeyError("tyop"), list[str]()
    made = compiled(tmp_path / "which", answerer(), QUESTIONS, metric=marks, optimizer=f"{__name__}.Knows")
    train = {example.question for example in Knows.given[0]}

    def buggy(example: Any, prediction: Any) -> float:
        calls.append(example.question)
        if example.question in train:
            raise error
        return 0.5

    with pytest.raises(KeyError) as raised:
        compiled(tmp_path / "c", answerer(), QUESTIONS, metric=buggy, optimizer=optimizer, options=OPTIONS[optimizer])
    assert raised.value is error and not (tmp_path / "c" / "program.json").exists()
    assert made.path.exists() and len(calls) < 30, "no long way on after it"


class Buggy(dspy.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.say = dspy.Predict("question -> response")

    def forward(self, question: str) -> dspy.Prediction:
        made = self.say(question=question)
        if question.endswith("3"):
            raise LookupError("a bug of the program's")
        return made


def test_a_bug_in_a_program_ends_it_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(LookupError, match="a bug of the program's"):
        compiled(tmp_path / "c", Buggy(), QUESTIONS, metric=marks, optimizer="bootstrap")
    assert not (tmp_path / "c" / "program.json").exists()


@pytest.mark.parametrize(
    "failure", [lm_errors.LMServerError("down", model="m"), "no JSON"], ids=["endpoint", "malformed"]
)
def test_bad_luck_with_one_example_ends_nothing(failure: str | Exception, tmp_path: Path) -> None:
    world = Watched()
    world.answer = lambda text, fields: failure if "question number 3" in text else None
    made = compiled(tmp_path / "c", answerer(), QUESTIONS, world, metric=marks, optimizer="gepa")
    assert made.proof is not None and made.stopped == ""
    scored = {e: s for trial in ledger_of(made.folder) for part in trial.scores.values() for e, s in part.items()}
    own_fault = isinstance(failure, str)
    assert len(scored) == (6 if own_fault else 5), (
        "what does not fit is the program's doing, an endpoint's fault is not"
    )
    assert (0.0 in scored.values()) == own_fault


def test_a_judge_that_abstains_on_a_reference_ends_nothing(tmp_path: Path) -> None:
    world = Watched()
    one = REFERENCES[3]["instruction"]

    def cannot(text: str, fields: Sequence[str]) -> str | None:
        if one in text and "grade" in fields:
            return json.dumps({"reason": "hard to say", "grade": "cannot tell"})
        return None

    world.answer = cannot
    made = compiled(tmp_path / "c", refed(), REFERENCES, world)
    assert made.proof is not None and made.stopped == ""


@pytest.mark.parametrize(
    "odd", ["{x} {{y}} %s </context> [[ ## completed ## ]] ```", "\x00\x1b[31m\u2028", 30_000 * "long "]
)
def test_odd_prompts_from_the_model_that_rewrites_are_candidates_like_any(odd: str, tmp_path: Path) -> None:
    world = Watched()
    world.answer = lambda text, fields: json.dumps({"new_instruction": odd}) if "new_instruction" in fields else None
    made = compiled(tmp_path / "c", answerer(), QUESTIONS, world, metric=marks, optimizer="gepa", evaluations=10)
    assert made.proof is not None and made.path.is_file() and made.diff()


def test_half_a_character_from_the_model_that_rewrites_ends_nothing(tmp_path: Path) -> None:
    world = Watched()
    world.answer = lambda text, fields: (
        '{"new_instruction": "Answer \\ud83d well."}' if "new_instruction" in fields else None
    )
    made = compiled(tmp_path / "c", answerer(), QUESTIONS, world, metric=marks, optimizer="gepa", evaluations=10)
    assert made.proof is not None and json.loads(made.path.read_text(encoding="utf-8")) and made.diff()


def test_a_compile_with_an_object_among_its_options_goes_on(tmp_path: Path) -> None:
    for _ in range(2):
        options = {"gepa_kwargs": {"stop_callbacks": [lambda _state: False]}}
        compiled(tmp_path / "c", answerer(), QUESTIONS, metric=marks, optimizer="gepa", options=options)


def test_the_caller_s_adapter_is_kept(tmp_path: Path) -> None:
    world = Watched()
    world.answer = lambda text, fields: (
        None if fields else "[[ ## reasoning ## ]]\nr\n\n[[ ## response ## ]]\nsaid\n\n[[ ## completed ## ]]"
    )
    with dspy.context(adapter=dspy.ChatAdapter()):
        made = compiled(tmp_path / "c", answerer(), QUESTIONS, world, metric=marks)
    assert made.proof is not None and all("[[ ## question ## ]]" in text for _, text in world.asked)


def test_half_a_character_in_an_answer_ends_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    world = Watched()
    half = json.dumps({"reasoning": "r", "response": "half \ud83d"}, ensure_ascii=False)
    world.answer = lambda text, fields: half if "number 3" in text else None
    with contextlib.suppress(RunStopped):
        compiled(tmp_path / "c", answerer(), QUESTIONS, world, metric=marks)
    assert "surrogates not allowed" not in caplog.text
