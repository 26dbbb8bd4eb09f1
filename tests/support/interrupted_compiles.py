"""Compiles in processes that can be killed, on the simulated server, and what they leave."""

from __future__ import annotations

import json
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dspy
import tqdm  # type: ignore[import-untyped]

from benchmarks.simulated import SimulatedTeacher
from refed_dspy import TeacherConfig
from refed_dspy.ledger.candidates import load_candidates
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.optimizers.result import Compiled
from tests.support import compiling
from tests.support.clocks import until

PATIENCE = 20.0
"""Seconds after which whatever still works is taken to hang."""
FORK = multiprocessing.get_context("fork")


def config(server: SimulatedTeacher, **settings: Any) -> TeacherConfig:
    """At temperature 0 the server says the same to the same messages, in any order."""
    return compiling.config(server, **{"temperature": 0.0, **settings})


def compiled(server: SimulatedTeacher, folder: Path, optimizer: str = "gepa", **settings: Any) -> Compiled:
    models = {"teacher": config(server), "judge": config(server, model="openai/judge")}
    program, examples = settings.pop("program", None), settings.pop("examples", None)
    return compiling.compiled(program, examples, folder, optimizer, **{**models, "evaluations": 10, **settings})


def outcome(folder: Path) -> dict[str, Any]:
    """All that a compile found out, but for times and what it cost."""
    with Ledger.read(folder) as ledger:
        manifest = dict(ledger.meta("outcome"))
        candidates = {t.digest: (t.scores, t.components, t.state) for t in load_candidates(ledger)}
    for word in ("made", "cost", "calls", "usage", "run_id"):
        del manifest[word]
    manifest["race"] = [{k: v for k, v in each.items() if k not in ("cost", "calls")} for each in manifest["race"]]
    if manifest["proof"]:
        manifest["proof"] = {k: v for k, v in manifest["proof"].items() if k in ("gain", "proved")}
    program = json.loads((folder / "program.json").read_text())
    return {
        "manifest": manifest,
        "candidates": candidates,
        "program": {k: v for k, v in program.items() if k != "refed"},
    }


def answers(folder: Path) -> int:
    if not (folder / "ledger.sqlite").exists():
        return 0
    with Ledger.read(folder) as ledger:
        return int(ledger.db.execute("SELECT count(*) FROM answers").fetchone()[0])


def _in_child(work: Callable[[], Any], folder: Path) -> None:
    tqdm.tqdm.set_lock(threading.RLock())  # its own is shared with the parent, and a kill would leave it taken
    with (folder.parent / f"{folder.name}.out").open("a") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
        begun = time.monotonic()
        try:
            work()
        except BaseException as error:
            written = folder.parent / "ended.new"
            written.write_text(f"{type(error).__name__} {time.monotonic() - begun:.1f}")
            written.rename(folder.parent / "ended")
            raise


@contextmanager
def child(work: Callable[[], Any], folder: Path) -> Iterator[Any]:
    """`work` in a process of its own, which is not left behind."""
    process = FORK.Process(target=_in_child, args=(work, folder))
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()


def killed(server: SimulatedTeacher, folder: Path, after: int, **settings: Any) -> bool:
    """A start that is killed (SIGKILL) once the server has answered so often. False where it had ended by then."""
    with child(lambda: compiled(server, folder, **settings), folder) as process:
        until(lambda: server.stats()["answered"] >= after or not process.is_alive())
        alive = bool(process.is_alive())
        process.kill()
        process.join()
    until(lambda: server.stats()["in_flight"] == 0)
    return alive


def full_marks(example: dspy.Example, prediction: dspy.Prediction, trace: Any = None) -> float:
    return 1.0
