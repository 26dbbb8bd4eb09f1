"""Planted faults: a hundred faults in the code that money depends on, planted one at a time. Do the tests catch them?

`python -m benchmarks.planted [SEED [COUNT]]`. The seed draws them from all that `mutations.py` finds in ROOMS, a third
in each. Each is planted in a copy of the repository, in a folder of its own, and the tests that call the changed
function run, quick ones first, until one fails. That one must fail again when it runs alone with the fault; one
that hangs for HANGS seconds counts as failed. Which tests call a function is found out first, by running them all
(`make test`, and what is slow in tests/ledger and tests/teachers) without any fault: all must pass. A fault that
changes nothing that anyone could notice is passed over: they are in planted_equivalents.yaml, each with the reason.

Every result is a line of JSON in planted-SEED.jsonl, in the folder for temporary files. A second start with the same
seed runs only the faults that are not caught there.
"""

from __future__ import annotations

import builtins
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import suppress
from hashlib import blake2b
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import yaml

from benchmarks.mutations import Fault, faults_of, traced

ROOT = Path(__file__).parents[1]
COUNT, LEAST_CAUGHT, AT_ONCE = 100, 0.97, 2
ANY_SPEED = "not live and not browser and not finetune"
FAST = f"{ANY_SPEED} and not slow"
HANGS = 90
"""Seconds. A test takes a third of that at most."""
LEDGER, TEACHERS, BATCHES = "refed_dspy/ledger/", "refed_dspy/teachers/", "refed_dspy/teachers/batch/"
ROOMS = {
    "ledger": [f"{LEDGER}{name}.py" for name in (
        "budget", "group_commit", "identity", "ledger", "recorder", "spending", "statements",
    )],
    "teachers": [f"{TEACHERS}{name}.py" for name in (
        "by_stage", "caps", "engine", "failures", "outcomes", "pool", "prices", "rate_limits", "recorded", "transport",
        "usage",
    )],
    "batches": [f"{LEDGER}{name}.py" for name in ("batch_log", "batches")] + [f"{BATCHES}{name}.py" for name in (
        "collector", "engine", "replies", "request", "service", "tracker",
    )],
}  # fmt: skip


def copied(folder: Path) -> Path:
    """A copy of what git has and does not ignore, with ../shared beside it where there is one."""
    root = folder / "repository"
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(listing, cwd=ROOT, capture_output=True, check=True)
    for name in listed.stdout.decode().split("\0"):
        if name and (ROOT / name).is_file():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, root / name)
    if (ROOT.parent / "shared").is_dir():
        (folder / "shared").symlink_to(ROOT.parent / "shared")
    return root


def started_warm(folder: Path) -> None:
    """Make this process's copy of the repository, and import what is slow to import and is not ours: each run of tests
    is a fork of it."""
    os.environ.update(LITELLM_LOCAL_MODEL_COST_MAP="true", PYTHONPATH=str(root := copied(folder / str(os.getpid()))))
    os.chdir(root)
    sys.path[0] = str(root)
    sys.dont_write_bytecode = False
    for name in ("dspy", "openai", "pytest_asyncio", "aiohttp.web", "xdist", "numpy"):
        import_module(name)


def failing(*arguments: str) -> str:
    """The first test that fails in this process's copy; "" where all pass. Nothing that it starts outlives it."""
    if (process := os.fork()) == 0:
        os.setsid()
        code = 3
        try:
            code = _tested(arguments)
        finally:
            os._exit(code)
    until, code = time.monotonic() + 40 * HANGS, -1
    while code < 0 and time.monotonic() < until:
        ended, status = os.waitpid(process, os.WNOHANG)
        code = os.waitstatus_to_exitcode(status) & 0xFF if ended else -1
        time.sleep(0.02)
    with suppress(ProcessLookupError):
        os.killpg(process, signal.SIGKILL)
    if code == 0:
        return ""
    if code < 0:
        os.waitpid(process, 0)
    failed = Path(".pytest_cache/v/cache/lastfailed")
    if code == 1 and failed.exists():
        return next(iter(json.loads(failed.read_text())), "a test")
    hung = code < 0 or "Timeout (" in Path("output").read_text(errors="replace")
    return "a hang" if hung else f"pytest's exit {code}"


def _tested(arguments: Sequence[str]) -> int:
    """In a fork: pytest's exit status. The names of the functions that each test called are in `callers` afterwards."""
    output = os.open("output", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    for name in [name for name in sys.modules if name.split(".")[0] in {"benchmarks", "tests", "refed_dspy"}]:
        del sys.modules[name]  # those of the copy are meant
    import pytest

    hangs = ["-o", f"faulthandler_timeout={HANGS}", "-o", "faulthandler_exit_on_timeout=true"]
    plugin = _Callers()
    code = int(pytest.main(["-x", "-q", "-n", "0", *hangs, *arguments], [plugin]))
    Path("callers").write_text(json.dumps(plugin.of))
    return code


class _Callers:
    """Notes which tests called each function, a plugin of pytest. `of`: function → test → the seconds that it took."""

    def __init__(self) -> None:
        self.of: defaultdict[str, dict[str, float]] = defaultdict(dict)
        self._took = 0.0
        self._seen: set[str] = set()
        vars(builtins)["_seen"] = self._seen  # what `traced` adds to

    def pytest_runtest_logreport(self, report: Any) -> None:
        self._took += report.duration

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        for name in self._seen:
            self.of[name][nodeid] = self._took
        self._seen.clear()
        self._took = 0.0


def callers(tests: Sequence[str], marks: str) -> dict[str, dict[str, float]]:
    """Function → those of these tests that call it → the seconds that each takes. Exits where one fails as it is."""
    modules = {Path(module): Path(module).read_bytes() for of_room in ROOMS.values() for module in of_room}
    Path("sitecustomize.py").write_text("import builtins\n\nbuiltins._seen = set()\n")  # for processes of tests
    try:
        for module, source in modules.items():
            _write(module, traced(str(module), source))
        broken = failing("--cache-clear", "--maxfail=99", "-m", marks, *tests)
        found: dict[str, dict[str, float]] = json.loads(Path("callers").read_text())
        if broken and (broken := failing("--lf", "-m", marks, *tests)):
            raise SystemExit(f"{broken} fails without any fault: mend that first")
    finally:
        for module, source in modules.items():
            _write(module, source)
    Path("chosen").write_text("\n".join({test for of_function in found.values() for test in of_function}))
    if broken := failing("--collect-only", "-m", marks, "@chosen"):
        raise SystemExit(f"{broken}: not every test can be chosen by its name")  # a fault would seem to be caught
    return found


def caught_by(tests: Sequence[str]) -> str:
    """Which of `tests` catches the fault that is in this process's copy, or ""."""
    Path("chosen").write_text("\n".join(tests))
    for _ in range(2):  # a test that fails for another reason does not count
        found = failing("--cache-clear", "-m", ANY_SPEED, "@chosen") if tests else ""
        if not found or "::" not in found or failing("-m", ANY_SPEED, found):
            return found
    return ""


def drawn(seed: int, count: int) -> Iterator[tuple[str, Fault]]:
    """(room, fault): a third of `count` of each room, without those that change nothing."""
    nothing = yaml.safe_load((ROOT / "benchmarks" / "planted_equivalents.yaml").read_text(encoding="utf-8")) or {}
    for number, (room, modules) in enumerate(ROOMS.items()):
        faults = [fault for module in modules for fault in faults_of(ROOT, module)]
        random.Random(f"{seed} {room}").shuffle(faults)
        faults = [fault for fault in faults if fault.name((ROOT / fault.module).read_bytes()) not in nothing]
        yield from ((room, fault) for fault in faults[: (count + number) // len(ROOMS)])


def run(room: str, fault: Fault, tests: Sequence[str]) -> dict[str, Any]:
    """Plant one fault in this process's copy, and take it out again."""
    started, module = time.monotonic(), Path(fault.module)
    source = module.read_bytes()
    try:
        _write(module, fault.planted(source))
        found = caught_by(tests)
    finally:
        _write(module, source)
    seconds = round(time.monotonic() - started)
    return {"room": room, "operator": fault.operator, "by": found, "seconds": seconds, **identified(fault)}


def _write(module: Path, source: bytes) -> None:
    module.write_bytes(source)
    for compiled in (module.parent / "__pycache__").glob(f"{module.stem}.*"):
        compiled.unlink()  # what is as long, and written in the same second, would pass for it


def identified(fault: Fault) -> dict[str, Any]:
    source = (ROOT / fault.module).read_bytes()
    digest = blake2b(fault.planted(source), digest_size=8).hexdigest()
    return {"name": fault.name(source), "diff": fault.diff(source), "planted": digest}


def parts() -> list[tuple[list[str], str]]:
    """All tests, and which of them by their marks: the slow ones too in the rooms of the code that is changed."""
    rooms = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "tests").iterdir() if path.name != "support")
    first, second = ["tests/ledger", "tests/teachers"], ["tests/cli", "tests/runs"]
    others = [room for room in rooms if "__" not in room and "conftest" not in room and room not in first + second]
    return [(first, ANY_SPEED), (second, FAST), (others, FAST)]


def merged(parts: Iterable[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    tests: defaultdict[str, dict[str, float]] = defaultdict(dict)
    for part in parts:
        for function, of_function in part.items():
            tests[function] |= of_function
    return tests


def called_by(fault: Fault, of_function: dict[str, dict[str, float]]) -> list[str]:
    """The tests that call the function in which the fault is, or any of the module where it is in none: those with the
    module's name first, and quick ones before slow ones."""
    own, took = f"test_{Path(fault.module).stem}", of_function.get(f"{fault.module} {fault.function}", {})
    if not fault.function.rpartition(".")[2].lstrip("_")[:1].islower():
        of_module = [tests for function, tests in of_function.items() if function.startswith(fault.module)]
        took = {test: seconds for tests in of_module for test, seconds in tests.items()}
    return sorted(took, key=lambda test: (own not in test, took[test]))


def main() -> int:
    given = [int(argument) for argument in sys.argv[1:]]
    seed, count = (*given, *(1, COUNT)[len(given) :])
    log = Path(tempfile.gettempdir()) / f"planted-{seed}.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    results = {line["planted"]: line for line in lines}
    faults = list(drawn(seed, count))
    keys = [identified(fault)["planted"] for _, fault in faults]
    with (
        tempfile.TemporaryDirectory(prefix="planted-") as folder,
        ProcessPoolExecutor(AT_ONCE, get_context("spawn"), initializer=started_warm, initargs=(Path(folder),)) as pool,
    ):
        of_function = merged(pool.map(callers, *zip(*parts(), strict=True)))
        todo = [pair for pair, key in zip(faults, keys, strict=True) if not results.get(key, {}).get("by")]
        for done in as_completed([pool.submit(run, *pair, called_by(pair[1], of_function)) for pair in todo]):
            result = done.result()
            results[result["planted"]] = result
            with log.open("a") as file:
                file.write(json.dumps(result) + "\n")
            print(f"{result['seconds']:>4} s  {result['by'] or 'NOT CAUGHT':<70.70}  {result['name']}", flush=True)
    return told([results[key] for key in keys])


def told(results: Sequence[dict[str, Any]]) -> int:
    """Print the faults that were not caught, and the figures."""
    for result in results:
        if not result["by"]:
            print(f"\nnot caught ({result['operator']}): {result['name']}", *result["diff"], sep="\n    ")
    for room in ROOMS:
        of_room = [bool(result["by"]) for result in results if result["room"] == room]
        print(f"{room}: caught {sum(of_room)} of {len(of_room)}")
    caught = sum(bool(result["by"]) for result in results)
    print(f"planted faults caught: {caught} of {len(results)} (must be >= {LEAST_CAUGHT:.0%})")
    return int(caught < LEAST_CAUGHT * len(results))


if __name__ == "__main__":
    sys.exit(main())
