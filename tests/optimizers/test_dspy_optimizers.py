"""Optimizers by name: set up from one number of evaluations, options that win, and refusals in one line."""

from __future__ import annotations

import copy
import logging
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dspy
import pytest
import tqdm  # type: ignore[import-untyped]

from refed_dspy.errors import ConfigError
from refed_dspy.optimizers.dspy_optimizers import Optimizer, OptimizerInputs, choose
from refed_dspy.optimizers.optimizer_log import LOG, printed_to_file
from tests.support.said import Said
from tests.support.scripted_engine import Writer, fake_lm

TEACHER, REFLECTION = fake_lm(Writer()), fake_lm(Writer())
TRAIN, HELD = [dspy.Example(n=n) for n in range(6)], [dspy.Example(n=-n) for n in range(1, 4)]


def metric(gold: Any, pred: Any, trace: Any = None, pred_name: Any = None, pred_trace: Any = None) -> float:
    return 1.0


def optimizer_inputs(**more: Any) -> OptimizerInputs:
    usual: dict[str, Any] = {
        "metric": metric, "teacher": TEACHER, "reflection": REFLECTION, "evaluations": 60, "threads": 3, "seed": 7,
        "stopping": lambda: False, "train": 6, "validation": 3,
    }  # fmt: skip
    return OptimizerInputs(**{**usual, **more})


class RecordedOptimizer:
    """Replaces one of DSPy's optimizers, and records its arguments."""

    def __init__(self, kind: Any, patch: pytest.MonkeyPatch) -> None:
        self.made: dict[str, Any] = {}
        self.compiled: dict[str, Any] = {}
        original = kind.__init__

        def init(this: Any, *args: Any, **kwargs: Any) -> None:
            self.made = kwargs
            original(this, *args, **kwargs)

        def compile_(this: Any, student: Any, **kwargs: Any) -> Any:
            self.compiled = kwargs
            return student

        init.__signature__ = __import__("inspect").signature(original)  # type: ignore[attr-defined]
        compile_.__signature__ = __import__("inspect").signature(kind.compile)  # type: ignore[attr-defined]
        patch.setattr(kind, "__init__", init)
        patch.setattr(kind, "compile", compile_)


@pytest.fixture
def recording_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], RecordedOptimizer]:
    return lambda kind: RecordedOptimizer(kind, monkeypatch)


def tuned(name: str, options: dict[str, Any] | None = None, **more: Any) -> Optimizer:
    optimizer = choose(name, options or {}, optimizer_inputs(**more))
    student = dspy.ChainOfThought("question -> answer")
    assert optimizer.tune(student, TRAIN, HELD) is student
    return optimizer


OURS = ("bootstrap", "gepa", "mipro", "simba")
KINDS = {
    "bootstrap": dspy.BootstrapFewShot,
    "gepa": dspy.GEPA,
    "mipro": dspy.MIPROv2,
    "simba": dspy.SIMBA,
    "dspy.COPRO": dspy.COPRO,
}


@pytest.mark.parametrize("name", KINDS)
def test_each_is_dspy_s_own_with_our_metric_and_the_sets_given(
    name: str, recording_of: Callable[[Any], RecordedOptimizer]
) -> None:
    optimizer = recording_of(KINDS[name])
    assert tuned(name).name == name
    assert optimizer.made["metric"] is metric
    sets = {"trainset": TRAIN, "valset": HELD} if name in {"gepa", "mipro"} else {"trainset": TRAIN}
    assert {word: given for word, given in optimizer.compiled.items() if word in {"trainset", "valset"}} == sets


@pytest.mark.parametrize("name", ["mipro", "simba", "gepa"])
def test_effort_follows_the_number_of_evaluations(name: str) -> None:
    expected = [choose(name, {}, optimizer_inputs(evaluations=count)).expected for count in (100, 200, 400)]
    assert expected == sorted(expected) and all(
        abs(made - asked) <= 0.5 * asked for made, asked in zip(expected, (100, 200, 400), strict=True)
    )


def test_bootstrap_expects_what_it_tries_and_the_validation_set() -> None:
    assert choose("bootstrap", {}, optimizer_inputs()).expected == 6 + 3
    assert choose("bootstrap", {"max_bootstrapped_demos": 1}, optimizer_inputs()).expected == 2 + 3


def test_seeds_threads_and_models_go_where_they_belong(recording_of: Callable[[Any], RecordedOptimizer]) -> None:
    gepa, mipro, simba = (recording_of(KINDS[name]) for name in ("gepa", "mipro", "simba"))
    for name in ("gepa", "mipro", "simba"):
        tuned(name)
    assert gepa.made["seed"] == simba.compiled["seed"] == 7 and mipro.made["seed"] == 8, "0 is no seed to MIPROv2"
    assert gepa.made["num_threads"] == mipro.made["num_threads"] == simba.made["num_threads"] == 3
    assert gepa.made["reflection_lm"] is mipro.made["prompt_model"] is simba.made["prompt_model"] is REFLECTION
    assert mipro.made["task_model"] is TEACHER
    assert gepa.made["max_metric_calls"] == 60


def test_mipro_tries_as_many_as_the_evaluations_pay_for(recording_of: Callable[[Any], RecordedOptimizer]) -> None:
    optimizer = recording_of(dspy.MIPROv2)
    tuned("mipro", evaluations=60, train=6, validation=3)
    assert optimizer.compiled["num_trials"] == (60 - 3 - 6) // 3 and optimizer.compiled["minibatch"] is False
    tuned("mipro", evaluations=1)
    assert optimizer.compiled["num_trials"] == 1


def test_simba_s_batch_is_no_larger_than_the_training_set(recording_of: Callable[[Any], RecordedOptimizer]) -> None:
    optimizer = recording_of(dspy.SIMBA)
    tuned("simba", train=5)
    assert optimizer.made["bsize"] == 5 and optimizer.made["max_steps"] >= 1
    tuned("simba", {"bsize": 2, "num_candidates": 2, "max_steps": 9}, train=5)
    assert (optimizer.made["bsize"], optimizer.made["num_candidates"], optimizer.made["max_steps"]) == (2, 2, 9)


@pytest.mark.parametrize(
    ("name", "options", "where"),
    [
        ("bootstrap", {"max_bootstrapped_demos": 1, "max_rounds": 3}, "made"),
        ("gepa", {"seed": 1, "reflection_minibatch_size": 2, "num_threads": 1}, "made"),
        ("mipro", {"num_candidates": 2, "max_labeled_demos": 1, "seed": 5}, "made"),
        ("mipro", {"num_trials": 2, "minibatch": True}, "compiled"),
        ("simba", {"max_demos": 0}, "made"),
        ("dspy.COPRO", {"breadth": 3, "depth": 1}, "made"),
        ("dspy.COPRO", {"eval_kwargs": {"num_threads": 1}}, "compiled"),
    ],
    ids=str,
)
def test_options_of_its_own_win(
    name: str, options: dict[str, Any], where: str, recording_of: Callable[[Any], RecordedOptimizer]
) -> None:
    optimizer = recording_of(KINDS[name])
    tuned(name, options)
    got: dict[str, Any] = {**optimizer.made, **optimizer.compiled} if name == "mipro" else getattr(optimizer, where)
    assert options.items() <= got.items()


@pytest.mark.parametrize("options", [{"num_threads": 1}, {"max_errors": 3}], ids=str)
def test_options_of_a_dotted_name_s_own_win_too(options: dict[str, Any]) -> None:
    assert choose("dspy.BootstrapFewShotWithRandomSearch", options, optimizer_inputs())


@pytest.mark.parametrize("options", [{"max_full_evals": 2}, {"auto": "light"}, {"max_metric_calls": 9}], ids=str)
def test_gepa_s_own_budget_takes_the_place_of_ours(
    options: dict[str, Any], recording_of: Callable[[Any], RecordedOptimizer]
) -> None:
    optimizer = recording_of(dspy.GEPA)
    tuned("gepa", options)
    budgets = ("auto", "max_full_evals", "max_metric_calls")
    assert {name: optimizer.made[name] for name in budgets if optimizer.made.get(name)} == options


def test_mipro_s_own_auto_takes_the_place_of_ours(recording_of: Callable[[Any], RecordedOptimizer]) -> None:
    optimizer = recording_of(dspy.MIPROv2)
    tuned("mipro", {"auto": "light", "minibatch": False})
    assert (optimizer.made["auto"], optimizer.made["num_candidates"]) == ("light", None)
    assert "num_trials" not in optimizer.compiled and optimizer.compiled["minibatch"] is False


@pytest.mark.parametrize(
    "name",
    [
        *("", "mipro2", "a b\nc", ".Thing", "dspy.", "..", "/a.b"),
        *("dspy.NoSuch", "nosuch.Thing", "dspy.teleprompt.x.y"),
        *("dspy.Predict", "dspy.LM", "json.dumps", "os.path", "re.compile"),
    ],
)
def test_a_name_of_no_optimizer_with_a_metric_is_told_with_the_known_ones(said: Said, name: str) -> None:
    with said.by(ConfigError) as raised:
        choose(name, {}, optimizer_inputs())
    assert str(raised.value).isprintable()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((name, {"nonsense": 1}) for name in (*OURS, "dspy.BootstrapFewShotWithRandomSearch")),
        ("gepa", {"auto": "light", "max_metric_calls": 3}),
        ("gepa", {"auto": "heaviest"}),
        ("simba", {"bsize": "eight"}),
        ("simba", {"bsize": 0}),
        ("simba", {"num_candidates": 0}),
        ("bootstrap", {"max_bootstrapped_demos": "four"}),
    ],
    ids=str,
)
def test_an_option_that_it_does_not_take_is_told_in_one_line(said: Said, name: str, options: dict[str, Any]) -> None:
    with said.by(ConfigError) as raised:
        choose(name, options, optimizer_inputs())
    assert str(raised.value).isprintable()


def test_a_wrong_option_is_told_in_dspy_s_words(said: Said) -> None:
    """They name its words in another order each time."""
    with pytest.raises(ConfigError) as raised:
        choose("mipro", {"auto": "heaviest"}, optimizer_inputs())
    said(str(raised.value).partition("{")[0])


@pytest.mark.parametrize("name", ["mipro", "dspy.BootstrapFewShotWithOptuna"])
def test_without_optuna_the_extra_is_named(said: Said, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)  # as where it is not installed
    with said.by(ConfigError):
        choose(name, {}, optimizer_inputs())


def test_gepa_ends_when_no_call_is_allowed_any_more_and_when_the_caller_says_so(
    recording_of: Callable[[Any], RecordedOptimizer],
) -> None:
    optimizer, over = recording_of(dspy.GEPA), [False]
    users_stopper = lambda _state: False  # noqa: E731
    tuned("gepa", {"gepa_kwargs": {"stop_callbacks": users_stopper, "use_merge": True}}, stopping=lambda: over[0])
    our_stopper, their_stopper = optimizer.made["gepa_kwargs"]["stop_callbacks"]
    assert their_stopper is users_stopper and optimizer.made["gepa_kwargs"]["use_merge"] is True
    assert our_stopper(None) is False
    over[0] = True
    assert our_stopper(None) is True


def test_the_caller_s_options_are_left_as_they_are() -> None:
    options = {"gepa_kwargs": {"stop_callbacks": [lambda _state: False]}, "track_stats": True}
    before = copy.copy(options), dict(options["gepa_kwargs"])  # type: ignore[call-overload]
    choose("gepa", options, optimizer_inputs())
    assert (options, options["gepa_kwargs"]) == before


# --- what they print and log goes to a file; what a caller's own code prints stays where it was


LOGGED, PRINTED = "Average Metric", "Best score so far"
DSPY = logging.getLogger("dspy.teleprompt.fake")


def everything() -> None:
    """What a compile hears: a log's line, a bar, a line of DSPy's own, and one of the caller's metric."""
    DSPY.info(LOGGED)
    list(tqdm.tqdm([1, 2]))
    exec(f"print({PRINTED!r})", {"__name__": "dspy.teleprompt.random_search"})
    sys.stdout.write("my metric\n")
    sys.stderr.write("my warning\n")


def test_what_optimizers_print_log_and_draw_is_in_the_folder(
    said: Said, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "dspy")
    before = list(logging.getLogger("dspy").handlers), logging.getLogger("dspy").propagate, sys.stdout, sys.stderr
    with printed_to_file(tmp_path):
        everything()
        with printed_to_file(tmp_path / "another compile at the same time"):
            everything()
    said(capsys.readouterr())
    log = (tmp_path / LOG).read_text()
    assert log.count(LOGGED) == log.count(PRINTED) == 2 and "2/2 [" in log
    dspy_log = logging.getLogger("dspy")
    assert before == (list(dspy_log.handlers), dspy_log.propagate, sys.stdout, sys.stderr)


def test_what_the_optimizer_s_threads_say_after_ctrl_c_is_in_the_file_too(
    said: Said, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "dspy")
    interrupted = threading.Event()

    def evaluating() -> None:
        interrupted.wait()
        time.sleep(0.1)
        DSPY.error("Error for an example: the compile has ended")

    with pytest.raises(KeyboardInterrupt), printed_to_file(tmp_path):
        threading.Thread(target=evaluating).start()
        interrupted.set()
        raise KeyboardInterrupt
    assert not caplog.records
    said((tmp_path / LOG).read_text())


def test_whoever_asks_dspy_for_every_word_gets_it(
    said: Said, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "dspy")
    with printed_to_file(tmp_path):
        everything()
    assert not (tmp_path / LOG).exists()
    said(capsys.readouterr().out)
