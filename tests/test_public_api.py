"""The package from outside: its names, its import, its lines of progress."""

from __future__ import annotations

import pickle
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import refed_dspy
from refed_dspy import errors
from refed_dspy.teachers.progress import Progress
from tests.support.said import Said

NO_NETWORK = """
import sys
def refuse(event, args):
    if event in {"socket.connect", "socket.getaddrinfo", "socket.sendto"}:
        raise SystemExit(f"network: {event} {args}")
sys.addaudithook(refuse)
import refed_dspy, refed_dspy.cli, refed_dspy.data.export, refed_dspy.runs.result
if "dspy" in sys.modules:
    raise SystemExit("imported: dspy")
refed_dspy.load_references("builtin")
refed_dspy.ReferenceLevelFeedback(), refed_dspy.synthesize
heavy = ("litellm", "mlflow", "datasets", "xllamacpp", "openai", "numpy", "rapidfuzz")
loaded = [name for name in heavy if name in sys.modules]
sys.exit(f"imported: {loaded}" if loaded else 0)
"""


def test_every_public_name_exists() -> None:
    for name in refed_dspy.__all__:
        assert getattr(refed_dspy, name) is not None


def test_only_the_public_names_are_listed_and_no_other_is_there(said: Said) -> None:
    assert dir(refed_dspy) == sorted([*refed_dspy.__all__, "__version__"]) and len(refed_dspy.__all__) <= 31
    with said.by(AttributeError):
        refed_dspy.synthesise  # type: ignore[attr-defined]  # noqa: B018


def test_a_cap_survives_a_pickle(said: Said) -> None:
    copied = pickle.loads(pickle.dumps(errors.CapReached("max_cost", 5)))
    said((copied.cap, copied.worst_picodollars, str(copied)))


def test_what_a_model_is_for_survives_a_pickle() -> None:
    assert str(pickle.loads(pickle.dumps(errors.ModelError("no such model", "judge")))) == "judge: no such model"


def test_importing_reads_no_network_and_none_of_the_heavy_libraries() -> None:
    done = subprocess.run([sys.executable, "-c", NO_NETWORK], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_packages_own_references_are_many_and_different() -> None:
    references = refed_dspy.load_references("builtin")
    assert len(references) >= 24 and not references.left_out
    assert len({reference.instruction[:30] for reference in references}) == len(references)


def test_exit_codes_follow_the_tree_of_errors() -> None:
    assert errors.ConfigError("x").exit_code == errors.TeacherRefused("x").exit_code == 2
    assert errors.RunStopped("x").exit_code == errors.TeacherError("x").exit_code == 1


def test_an_errors_line_is_one_line_and_safe_to_print() -> None:
    assert errors.one_line("a\nb\x1b[31m\tc" + "d" * 500, 20) == "a b?[31m cddddddddd…"


def test_progress_in_one_line() -> None:
    progress = Progress(size=100, kept=50, in_flight=7, calls=12_345, prompt_tokens=123_456)
    progress.failed["malformed"] += 2
    counts = "7 in flight · 12,345 calls · 123k tokens read, 0 written"
    assert str(progress) == f"50/100 samples · $0 · 2 failed · time left: … · {counts}"
    now = time.monotonic()
    progress.moments.extend(now - 10 * (39 - n) for n in range(40))
    assert str(progress) == f"50/100 samples · $0 · 2 failed · about 8 min left · {counts}"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda _: refed_dspy.synthesize(sise=5), "sise: unknown key; did you mean size?"),  # type: ignore[call-arg]
        (lambda folder: refed_dspy.load_references(folder / "none.jsonl"), "no such file"),
        (lambda folder: refed_dspy.read_run(folder), "no run here"),
        (lambda folder: refed_dspy.filter_data([{"instruction": "a", "response": "b"}], ["rubric"]), "with judge=…"),
    ],
)
def test_a_persons_mistake_is_a_short_traceback(tmp_path: Path, call: Callable[[Path], Any], message: str) -> None:
    with pytest.raises(errors.InputError) as raised:
        call(tmp_path)
    shown = traceback.format_exception(raised.value)[1:]
    assert message in shown[-1] and "--" not in shown[-1] and len("".join(shown).splitlines()) <= 10
