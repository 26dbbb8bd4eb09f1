"""Caps of a compile, held against a server that counts: whatever the optimizer, and whatever goes wrong."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import dspy
import pytest

import refed_dspy
from benchmarks.simulated import SimulatedTeacher
from refed_dspy import Compiled, ReferenceLevelFeedback, TeacherConfig, open_teacher
from refed_dspy.errors import ConfigError, RefedError, TeacherError
from refed_dspy.ledger.candidates import Trial, trials
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.spending import spent
from refed_dspy.programs.saved import program_state
from tests.conftest import KEY, KEY_VARIABLE
from tests.support import compiling
from tests.support.compiling import Answerer, questions, requests
from tests.support.scripted_engine import Writer, fake_lm

server, without_words = compiling.terse_server, compiling.without_words
OPTIMIZERS = ("gepa", "mipro", "simba", "bootstrap")
BASELINE = 18
"""Calls of the uncompiled program's evaluation on two references."""


def config(server: SimulatedTeacher, **settings: Any) -> TeacherConfig:
    return compiling.config(server, **{"timeout": 5, "retries": 1, **settings})


def compiled(server: SimulatedTeacher, folder: Path, optimizer: str = "gepa", **settings: Any) -> Compiled:
    models = {"teacher": config(server), "judge": config(server, temperature=0.0, model="openai/judge")}
    return compiling.compiled(None, None, folder, optimizer, **{**models, "evaluations": 8, **settings})


def billed(server: SimulatedTeacher) -> int:
    stats = server.stats()
    return int(stats["billed_prompt_tokens"] * 10**6 + stats["billed_completion_tokens"] * 10**7)


def charged(folder: Path) -> tuple[int, int]:
    """Picodollars and calls."""
    with Ledger.read(folder) as ledger:
        return spent(ledger).cost, spent(ledger).calls


def candidates(folder: Path) -> list[Trial]:
    with Ledger.read(folder) as ledger:
        return trials(ledger)


def is_whole(made: Compiled, cap: str) -> None:
    """It ended at `cap`, and what it left can be used."""
    assert made.stopped == cap == made.manifest["stopped"]
    again = ReferenceLevelFeedback({"topic": "What it is about."})
    refed_dspy.load_program(again, made.path)
    written, here = program_state(again), program_state(made.program)
    assert all(written[name] == here[name] for name, _ in again.named_predictors())
    assert f"stopped: {cap} is reached" in "\n".join(made.lines())
    assert json.loads(made.path.read_text())["refed"]["calls"] == made.manifest["calls"] == charged(made.folder)[1]


# --- caps hold, and what there is comes back


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_max_calls_is_never_passed(server: SimulatedTeacher, tmp_path: Path, optimizer: str) -> None:
    made = compiled(server, tmp_path, optimizer, max_calls=45)
    assert BASELINE < requests(server) <= 45
    assert requests(server) == charged(tmp_path)[1]
    is_whole(made, "max_calls")


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_max_cost_is_never_passed_whatever_goes_wrong(server: SimulatedTeacher, tmp_path: Path, optimizer: str) -> None:
    server.control(faults={"500": 0.03, "malformed": 0.03, "cut": 0.03, "drop": 0.02, "nousage": 0.02}, seed=4)
    made = compiled(server, tmp_path, optimizer, max_cost=0.04)
    assert billed(server) <= charged(tmp_path)[0] <= 0.04 * 10**12
    assert requests(server) == charged(tmp_path)[1] > BASELINE
    is_whole(made, "max_cost")


@pytest.mark.parametrize("cap", [1, BASELINE - 1, BASELINE, BASELINE + 1])
def test_a_cap_about_the_baselines_evaluation_gives_the_uncompiled_program(
    server: SimulatedTeacher, tmp_path: Path, cap: int
) -> None:
    made = compiled(server, tmp_path, max_calls=cap)
    assert requests(server) <= cap
    assert not made.changed and made.proof is None
    is_whole(made, "max_calls")


def test_a_compile_that_fits_ends_as_ever(server: SimulatedTeacher, tmp_path: Path) -> None:
    made = compiled(server, tmp_path, "bootstrap", max_calls=5_000, max_cost=50, max_minutes=10)
    assert made.stopped == "" and made.proof is not None
    assert requests(server) == charged(tmp_path)[1] and charged(tmp_path)[0] == billed(server)


def test_the_proof_is_paid_for_by_what_was_held_back(server: SimulatedTeacher, tmp_path: Path) -> None:
    made = compiled(server, tmp_path, max_calls=80)
    assert made.proof is not None and made.stopped == "max_calls"
    assert made.proof.baseline.score.mean >= 0 and (tmp_path / "proof.txt").exists()


@pytest.mark.slow
def test_max_minutes_ends_it_and_lets_go_of_what_hangs(server: SimulatedTeacher, tmp_path: Path) -> None:
    server.control(faults={"hang": 0.02}, seed=1)
    begun = time.monotonic()
    made = compiled(server, tmp_path, teacher=config(server, timeout=600), max_minutes=0.02)
    assert time.monotonic() - begun < 6
    is_whole(made, "max_minutes")


@pytest.mark.slow
def test_a_higher_cap_lets_the_same_call_go_on_and_pays_nothing_again(server: SimulatedTeacher, tmp_path: Path) -> None:
    compiled(server, tmp_path, max_calls=40)
    made = compiled(server, tmp_path, max_calls=50)
    assert 40 < requests(server) <= 50 and made.stopped == "max_calls"
    done = compiled(server, tmp_path, max_calls=2_000)
    assert done.stopped == "" and done.proof is not None
    assert server.stats()["repeated"] == 0 and requests(server) == charged(tmp_path)[1]


@pytest.mark.slow
def test_a_cap_stays_until_another_is_given(server: SimulatedTeacher, tmp_path: Path) -> None:
    compiled(server, tmp_path, max_calls=30)
    assert compiled(server, tmp_path).stopped == "max_calls" and requests(server) <= 30
    assert compiled(server, tmp_path, "gepa", max_calls=1).stopped == "max_calls", "one below what was spent"
    assert requests(server) <= 30


@pytest.mark.slow
def test_lifting_a_cap(server: SimulatedTeacher, tmp_path: Path) -> None:
    compiled(server, tmp_path, "bootstrap", max_cost=0.01)
    assert compiled(server, tmp_path, "bootstrap", max_cost=math.inf).stopped == ""


@pytest.mark.slow
def test_the_estimate_of_a_second_start_is_that_of_the_first(server: SimulatedTeacher, tmp_path: Path) -> None:
    first = compiled(server, tmp_path, "bootstrap").estimate
    second = compiled(server, tmp_path, "bootstrap").estimate
    assert second["calls"] == first["calls"] and second["proof_cost"] == first["proof_cost"]


# --- a program of one call, and an optimizer that does as it is told


class Stepwise:
    """Tries prompts in order on the whole validation set. In DSPy's shape; gives back the one of that number."""

    def __init__(self, metric: Any, prompts: tuple[str, ...], back: int = -1) -> None:
        self.metric, self.prompts, self.back = metric, prompts, back

    def compile(self, student: dspy.Module, *, trainset: list[Any], valset: list[Any]) -> dspy.Module:
        score = dspy.Evaluate(devset=valset, metric=self.metric, num_threads=1, max_errors=99, display_progress=False)
        made = []
        for prompt in self.prompts:
            made.append(student.deepcopy())
            made[-1].answer.signature = student.answer.signature.with_instructions(prompt)
            score(made[-1])
        return made[self.back]


def graded(example: dspy.Example, prediction: dspy.Prediction, trace: Any = None) -> float:
    """What its prompt says that it is worth; 0.5 for the uncompiled one."""
    last = str(prediction.prompt).rpartition(" ")[2]
    return float(last) if last.startswith("0.") else 0.5


def stepped(
    server: SimulatedTeacher, folder: Path, max_calls: int | None, *prompts: str, back: int = -1, **more: Any
) -> Compiled:
    """Five validation and three test examples, one call each. Of `max_calls` above 5 half is held back for the proof,
    18 at most."""
    return refed_dspy.compile(
        Answerer(),
        questions(11),
        metric=graded,
        teacher=config(server),
        judge=config(server),
        optimizer="tests.optimizers.test_compile_caps.Stepwise",
        options={"prompts": prompts or ("Worth 0.9",), "back": back},
        out=folder,
        max_calls=max_calls,
        **{"train": 3, "validation": 5, "test": 3, "threads": 1, "track": False, **more},
    )


def test_the_best_candidate_is_chosen_and_proved(server: SimulatedTeacher, tmp_path: Path) -> None:
    made = stepped(server, tmp_path, None, "Worth 0.7", "Worth 0.9", "Worth 0.2")
    assert made.changed and made.program.answer.signature.instructions == "Worth 0.9"
    assert made.proof is not None and made.proof.gain.mean == pytest.approx(0.4)
    assert requests(server) == 5 + 3 * 5 + 2 * 3


@pytest.mark.parametrize(("scored", "chosen"), [(2, False), (4, True)])
def test_a_candidate_that_the_cap_cut_short_is_chosen_only_from_four_fifths_on(
    server: SimulatedTeacher, tmp_path: Path, scored: int, chosen: bool
) -> None:
    """Half of `scored` comes of the optimizer's own calls, half of those that were held back."""
    made = stepped(server, tmp_path, 5 + scored)
    assert requests(server) == 5 + scored
    partly = candidates(tmp_path)[1]
    assert len(partly.scores["validation"]) == scored and partly.mean("validation") == 0.9
    assert made.changed is chosen and made.stopped == "max_calls" and made.proof is None


def test_an_earlier_whole_candidate_is_chosen_over_a_better_one_that_was_cut(
    server: SimulatedTeacher, tmp_path: Path
) -> None:
    made = stepped(server, tmp_path, 5 + 2 * 6, "Worth 0.7", "Worth 0.95", back=0)
    assert requests(server) == 17
    assert len(candidates(tmp_path)[2].scores["validation"]) == 1
    assert made.program.answer.signature.instructions == "Worth 0.7"


@pytest.mark.slow
def test_a_compile_called_again_at_its_cap_does_not_lose_its_proof(server: SimulatedTeacher, tmp_path: Path) -> None:
    first = stepped(server, tmp_path, 21, "Worth 0.6", "Worth 0.9", back=0)
    if first.proof is None or first.stopped != "max_calls" or not first.changed:
        pytest.fail("the first start should have proved its gain", pytrace=False)
    again = stepped(server, tmp_path, 21, "Worth 0.6", "Worth 0.9", back=0)
    assert again.proof is not None
    assert again.manifest["candidate"] == first.manifest["candidate"]


def test_an_estimate_leaves_the_program_of_a_finished_compile_alone(server: SimulatedTeacher, tmp_path: Path) -> None:
    made = stepped(server, tmp_path, None)
    assert made.changed
    before = made.path.read_bytes()
    stepped(server, tmp_path, None, estimate_only=True)
    assert made.path.read_bytes() == before


# --- refused before anything is sent


def refused(server: SimulatedTeacher, folder: Path, **settings: Any) -> str:
    with pytest.raises(ConfigError) as error:
        compiled(server, folder, **settings)
    assert requests(server) == 0 and "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("role", ["teacher", "judge", "reflection"])
def test_a_cap_below_one_calls_worst_case_is_refused(server: SimulatedTeacher, tmp_path: Path, role: str) -> None:
    dear = config(server, model="openai/dear", max_tokens=9_000, temperature=0.0)
    least = open_teacher(dear).least
    assert least is not None
    message = refused(server, tmp_path, max_cost=0.9 * least / 10**12, **{role: dear})
    assert message.startswith("max_cost") and role in message and "max_tokens (9000)" in message


def test_a_cap_below_the_first_calls_own_worst_case_sends_nothing(server: SimulatedTeacher, tmp_path: Path) -> None:
    least = open_teacher(config(server)).least
    assert least is not None
    made = compiled(server, tmp_path, max_cost=1.01 * least / 10**12)
    assert requests(server) == 0 and made.stopped == "max_cost" and not made.changed


@pytest.mark.parametrize("role", ["teacher", "judge", "reflection"])
def test_a_cap_in_dollars_needs_every_price(server: SimulatedTeacher, tmp_path: Path, role: str) -> None:
    message = refused(server, tmp_path, max_cost=5.0, **{role: config(server, model="openai/free", price=None)})
    assert message.startswith("max_cost: the price of the") and role in message and "max_calls" in message


@pytest.mark.parametrize("cap", [{"max_cost": 5.0}, {"max_calls": 500}], ids=str)
@pytest.mark.parametrize("role", ["teacher", "judge", "reflection"])
def test_a_callers_own_lm_takes_no_cap(
    server: SimulatedTeacher, tmp_path: Path, role: str, cap: dict[str, Any]
) -> None:
    writer = Writer()
    message = refused(server, tmp_path, **{role: fake_lm(writer)}, **cap)
    assert message.startswith(f"{role}: a dspy.LM") and "TeacherConfig" in message and not writer.requests


@pytest.mark.parametrize(
    "cap",
    [
        *({"max_cost": value} for value in (0, -1.0, math.nan)),
        *({"max_calls": value} for value in (0, 1.5)),
        *({"max_minutes": value} for value in (0, math.nan)),
    ],
    ids=str,
)
def test_a_cap_that_makes_no_sense_is_refused(server: SimulatedTeacher, tmp_path: Path, cap: dict[str, Any]) -> None:
    assert refused(server, tmp_path / "new", **cap).startswith(next(iter(cap)))
    assert not (tmp_path / "new").exists()


def test_a_cap_in_dollars_needs_the_price_of_what_was_done_before(server: SimulatedTeacher, tmp_path: Path) -> None:
    """As for a run: what earlier starts cost is unknown, so what is left of the cap is unknown too."""
    free = config(server, price=None)
    compiled(server, tmp_path, "bootstrap", teacher=free, judge=free, max_calls=30)
    with pytest.raises(ConfigError, match="unknown price"):
        compiled(server, tmp_path, "bootstrap", teacher=config(server), judge=config(server), max_cost=1.0)


# --- models that cannot go on


def ends_with(error: type[RefedError], caplog: pytest.LogCaptureFixture, **compile_: Any) -> str:
    with pytest.raises(error) as ended:
        compiled(**compile_)
    told = str(ended.value)
    assert "\n" not in told and "Traceback" not in caplog.text
    return told


@pytest.mark.parametrize("role", ["teacher", "judge"])
def test_a_wrong_key_ends_it_at_once(
    locked: SimulatedTeacher,
    server: SimulatedTeacher,
    tmp_path: Path,
    role: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wrong = "sk-wrong-0987654321fedcba"
    monkeypatch.setenv("WRONG_KEY", wrong)
    model = config(locked, model="openai/locked", api_key_env="WRONG_KEY")
    told = ends_with(TeacherError, caplog, server=server, folder=tmp_path, **{role: model})
    assert "api_key_env" in told and wrong not in told + caplog.text
    assert 1 <= requests(locked) <= 32, "only what was in flight already"
    assert all(wrong.encode() not in path.read_bytes() for path in tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["mipro", "bootstrap"])
def test_a_key_that_stops_working_ends_an_optimizer_and_a_new_one_goes_on(
    locked: SimulatedTeacher, tmp_path: Path, optimizer: str, caplog: pytest.LogCaptureFixture
) -> None:
    locked.control(auth_fails_after=BASELINE + 10, response_words=8, items=1)
    model = config(locked, api_key_env=KEY_VARIABLE)
    settings: dict[str, Any] = {"server": locked, "folder": tmp_path, "optimizer": optimizer}
    settings |= {"teacher": model, "judge": model}
    told = ends_with(TeacherError, caplog, **settings)
    assert "api_key_env" in told and KEY not in told
    answered = locked.stats()["answered"]
    assert answered <= BASELINE + 10 + 32
    locked.control(auth_fails_after=None)
    made = compiled(**settings, max_calls=BASELINE + 60)
    assert made.path.exists()
    assert KEY.encode() not in b"".join(path.read_bytes() for path in tmp_path.iterdir())


def test_an_endpoint_that_goes_down_ends_it(
    server: SimulatedTeacher, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server.control(down_after=BASELINE + 5)
    model = config(server, retries=0)
    told = ends_with(TeacherError, caplog, server=server, folder=tmp_path, teacher=model, judge=model, evaluations=60)
    assert "in a row had no answer" in told
    assert requests(server) <= BASELINE + 5 + 20 + 32


def test_an_endpoint_that_goes_down_near_the_end_is_told_of(server: SimulatedTeacher, tmp_path: Path) -> None:
    """17 requests are lost: the optimizer's last ones and the whole proof."""
    server.control(down_after=BASELINE + 5)
    model = config(server, retries=0)
    try:
        made = compiled(server, tmp_path, teacher=model, judge=model)
    except RefedError:
        return
    assert made.stopped or made.proof is not None


def test_an_endpoint_that_is_not_there_ends_it(
    server: SimulatedTeacher, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gone = config(server, api_base="http://127.0.0.1:9/v1")
    told = ends_with(TeacherError, caplog, server=server, folder=tmp_path, teacher=gone, judge=gone)
    assert "127.0.0.1:9" in told and "api_base" in told
    with Ledger.read(tmp_path) as ledger:
        assert not ledger.has_answers()
