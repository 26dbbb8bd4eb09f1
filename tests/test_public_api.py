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


def test_only_the_public_names_are_listed_and_no_other_is_there(said: Said) -> None:
    assert all(getattr(refed_dspy, name) is not None for name in refed_dspy.__all__)
    assert dir(refed_dspy) == sorted([*refed_dspy.__all__, "__version__"]) and len(refed_dspy.__all__) <= 37
    with said.by(AttributeError):
        refed_dspy.synthesise  # type: ignore[attr-defined]  # noqa: B018


def test_an_error_survives_a_pickle() -> None:
    cap, model = errors.CapReached("max_cost", 5), errors.ModelError("no such", "judge")
    copied = pickle.loads(pickle.dumps(cap))
    assert (copied.cap, copied.worst_picodollars, str(copied)) == (cap.cap, cap.worst_picodollars, str(cap))
    assert str(pickle.loads(pickle.dumps(model))) == str(model)


def test_importing_reads_no_network_and_none_of_the_heavy_libraries() -> None:
    done = subprocess.run([sys.executable, "-c", NO_NETWORK], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_exit_codes_follow_the_tree_of_errors() -> None:
    assert errors.ConfigError("x").exit_code == errors.TeacherRefused("x").exit_code == 2
    assert errors.RunStopped("x").exit_code == errors.TeacherError("x").exit_code == 1


def test_an_errors_line_is_one_line_and_safe_to_print() -> None:
    assert errors.one_line("a\nb\x1b[31m\tc" + "d" * 500, 20) == "a b?[31m cddddddddd…"


def test_progress_in_one_line(said: Said) -> None:
    progress = Progress(size=100, kept=50, in_flight=7, calls=12_345, prompt_tokens=123_456)
    progress.failed["malformed"] += 2
    said(str(progress))
    now = time.monotonic()
    progress.moments.extend(now - 10 * (39 - n) for n in range(40))
    said(str(progress))


@pytest.mark.parametrize(
    "call",
    [
        lambda _: refed_dspy.synthesize(sise=5),  # type: ignore[call-arg]
        lambda folder: refed_dspy.load_references(folder / "none.jsonl"),
        lambda folder: refed_dspy.read_run(folder),
        lambda _: refed_dspy.filter_data([{"instruction": "a", "response": "b"}], ["rubric"]),
    ],
    ids=["keyword", "file", "folder", "filter"],
)
def test_a_persons_mistake_is_a_short_traceback(said: Said, tmp_path: Path, call: Callable[[Path], Any]) -> None:
    with said.by(errors.InputError) as raised:
        call(tmp_path)
    shown = traceback.format_exception(raised.value)[1:]
    lines = [line for line in "".join(shown).splitlines() if line.strip(" ~^")]
    assert "--" not in shown[-1] and len(lines) <= 10
