"""Planted faults, one at a time, an equal share in each room of the package. Do the tests catch them?

`python -m benchmarks.planted [--list] [SEED [COUNT [ROOM …]]]` plants COUNT faults in all of ROOMS, or in those named;
`--list` prints them only. They come from all that `mutations.py` finds, in an order that the seed, the function and
the change decide. So code that only moves gets the same faults, and these four files (planted.py, mutations.py,
planted_equivalents.yaml, __init__.py) copied into another commit's checkout plant there what can be compared.

Each is planted in a copy of the repository, in a folder of its own, and the tests that call the changed function run,
quick ones first, until one fails. That one must fail again when it runs alone with the fault; one that hangs for HANGS
seconds counts as failed. Which tests call a function is found out first, by running them all (`make test`, and what is
slow in tests/ledger, tests/teachers and tests/contracts) without any fault: all must pass. That takes ten minutes, and
is kept in the folder for temporary files until code or tests change. A fault that changes nothing that anyone could
notice is passed over: they are in planted_equivalents.yaml, each with the reason, by function and change, whatever file
they are in.

Every result is a line of JSON in planted-CHECKOUT-SEED.jsonl, in that folder, too. A second start with the same seed
runs only the faults that are not caught there.
"""

from __future__ import annotations

import argparse
import builtins
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import suppress
from fnmatch import fnmatch
from functools import cache
from hashlib import blake2b
from importlib import import_module
from itertools import accumulate, repeat
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import yaml

from benchmarks.mutations import Fault, faults_of, traced

ROOT = Path(__file__).parents[1]
COUNT, LEAST_CAUGHT, AT_ONCE = 100, 0.97, 2
ANY_SPEED = "not live and not browser and not finetune and not cluster and not evaluate"
FAST = f"{ANY_SPEED} and not slow"
HANGS = 90
"""Seconds. A test takes a third of that at most."""
LONGEST = 300
"""Seconds of tests for one fault: of a function that a thousand tests call, the quick ones."""
PLUG_INS = {
    "": ("plugins", "sharing"),
    "cli/": ("evaluate", "people", "sharing"),
    "config/": ("evaluation", "judge_training"),
    "data/": ("prompts",),
    "metrics/": ("alpha", "calibration", "d*", "endpoint_scorer", "figures", "perplexity", "style", "t*", "w*"),
    "optimizers/": ("judge_agreement", "judge_training", "people"),
    "programs/": ("answer_figures", "correction", "side_by_side", "trained_judge"),
    "runs/": ("answers", "cluster", "compare", "evaluation", "recycle", "stats"),
    "teachers/": ("replay",),
    "tracking/": ("evaluation",),
}
"""What the plug-ins are made of: the first line today, the others before they had a folder of their own (e34ee2a)."""
ROOMS = {
    "plug-ins": [f"{folder}{name}{end}" for folder in PLUG_INS for name in PLUG_INS[folder] for end in (".py", "/*")],
    "batches": ["ledger/batch*", "teachers/batch/*"],
    "ledger": ["ledger/*"],
    "teachers": ["teachers/*", "jobs/*"],
    "programs": ["programs/*", "signatures/*"],
    "filters": ["filters/*", "runs/filter/*", "metrics/rouge.py"],
    "proof": ["optimizers/*", "measures/*", "metrics/*"],
    "data": ["data/*"],
    "config": ["config/*"],
    "commands": ["cli/*"],
    "runs": ["runs/*"],
    "shared": ["*"],
}
"""A module is in the first room that has a pattern for it: today's layout and that of e34ee2a have all of them."""
NO_TESTS = 5
"""pytest's exit status where none is left to run."""
OWN = ("benchmarks/README.md", "benchmarks/planted_equivalents.yaml")


@cache
def modules() -> dict[str, list[str]]:
    """Room → its modules."""
    found: dict[str, list[str]] = {room: [] for room in ROOMS}
    for path in sorted((ROOT / "refed_dspy").rglob("*.py")):
        name = path.relative_to(ROOT / "refed_dspy").as_posix()
        room = next(room for room in ROOMS if any(fnmatch(name, pattern) for pattern in ROOMS[room]))
        found[room].append(f"refed_dspy/{name}")
    return found


def listed() -> list[str]:
    """What git has and does not ignore."""
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, cwd=ROOT, capture_output=True, check=True).stdout.decode().split("\0")
    return sorted(name for name in names if name and (ROOT / name).is_file())


def kept() -> Path:
    """The folder where `callers` are kept, by all code that tests could run."""
    digest = blake2b(digest_size=8)
    for name in listed():
        if name.split("/")[0] in {"refed_dspy", "tests", "benchmarks"} and name not in OWN:
            digest.update(f"{name} ".encode() + blake2b((ROOT / name).read_bytes()).digest())
    folder = Path(tempfile.gettempdir()) / f"planted-callers-{digest.hexdigest()}"
    folder.mkdir(exist_ok=True)
    return folder


def copied(folder: Path) -> Path:
    """A copy of what git has and does not ignore, with ../shared beside it where there is one."""
    root = folder / "repository"
    for name in listed():
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
    """The first test that fails in this process's copy; "" where all pass, or none is chosen. Nothing that it starts
    outlives it."""
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
    if code in {0, NO_TESTS}:
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
        self._file = Path("seen").absolute()
        self._file.write_text("")
        self._seen: set[str] = set()
        vars(builtins)["_seen"] = self._seen  # what `traced` adds to in this process; in others, to the file alone

    def pytest_runtest_logreport(self, report: Any) -> None:
        self._took += report.duration

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        for name in self._seen.union(self._file.read_text().splitlines()):
            self.of[name][nodeid] = self._took
        os.truncate(self._file, 0)
        self._seen.clear()
        self._took = 0.0


def callers(tests: str, marks: str, folder: Path) -> dict[str, dict[str, float]]:
    """Function → those of these tests that call it → the seconds that each takes, kept in `folder`. Exits where one
    fails as it is."""
    if (file := folder / f"{tests.replace('/', '-')}.json").exists():
        known: dict[str, dict[str, float]] = json.loads(file.read_text())
        return known
    sources = {Path(module): Path(module).read_bytes() for of_room in modules().values() for module in of_room}
    try:
        for module, source in sources.items():
            _write(module, traced(str(module), source, Path("seen").absolute()))
        broken = failing("--cache-clear", "--maxfail=99", "-m", marks, tests)
        found: dict[str, dict[str, float]] = json.loads(Path("callers").read_text())
    finally:
        for module, source in sources.items():
            _write(module, source)
    if broken and (broken := failing("--lf", "-m", marks, tests)):  # a test that reads the code passes as it is
        raise SystemExit(f"{broken} fails without any fault: mend that first")
    Path("chosen").write_text("\n".join({test for of_function in found.values() for test in of_function}))
    if found and (broken := failing("--collect-only", "-m", marks, "@chosen")):
        raise SystemExit(f"{broken}: not every test can be chosen by its name")  # a fault would seem to be caught
    file.with_suffix(".tmp").write_text(json.dumps(found))
    file.with_suffix(".tmp").replace(file)
    return found


def caught_by(tests: Sequence[str]) -> str:
    """Which of `tests` catches the fault that is in this process's copy, or ""."""
    Path("chosen").write_text("\n".join(tests))
    for _ in range(2):  # a test that fails for another reason does not count
        found = failing("--cache-clear", "-m", ANY_SPEED, "@chosen") if tests else ""
        if not found or "::" not in found or failing("-m", ANY_SPEED, found):
            return found
    return ""


def drawn(seed: int, count: int, rooms: Sequence[str]) -> Iterator[tuple[str, Fault]]:
    """(room, fault): an equal share of `count` of each room, without those that change nothing."""
    nothing = yaml.safe_load((ROOT / "benchmarks" / "planted_equivalents.yaml").read_text(encoding="utf-8")) or {}
    for number, room in enumerate(rooms):
        ranked = []
        seen: Counter[str] = Counter()
        for module in modules()[room]:
            source = (ROOT / module).read_bytes()
            for fault in faults_of(ROOT, module):
                if (change := fault.change(source)) not in nothing:
                    seen[change] += 1
                    rank = blake2b(f"{seed} {seen[change]} {change}".encode()).digest()
                    ranked.append((rank, fault))
        ranked.sort(key=lambda pair: pair[0])
        yield from ((room, fault) for _, fault in ranked[: (count + number) // len(rooms)])


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


def parts() -> list[tuple[str, str]]:
    """All tests by folder, long ones first, and which of them by their marks: slow ones, too, where money is."""
    names = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "tests").iterdir() if path.name != "support")
    names = [name for name in names if "__" not in name and "conftest" not in name]
    long = {"tests/teachers", "tests/plugins", "tests/runs", "tests/cli", "tests/ledger", "tests/optimizers"}
    slow_too = {"tests/ledger", "tests/teachers", "tests/contracts"}
    return [
        (name, ANY_SPEED if name in slow_too else FAST) for name in sorted(names, key=lambda name: name not in long)
    ]


def merged(parts: Iterable[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    tests: defaultdict[str, dict[str, float]] = defaultdict(dict)
    for part in parts:
        for function, of_function in part.items():
            tests[function] |= of_function
    return tests


def called_by(fault: Fault, of_function: dict[str, dict[str, float]]) -> list[str]:
    """The tests that call the function in which the fault is, or any of the module where it is in none: those with the
    module's name first, and quick ones before slow ones, until they take LONGEST."""
    own, took = f"test_{Path(fault.module).stem}", of_function.get(f"{fault.module} {fault.function}", {})
    if not fault.function.rpartition(".")[2].lstrip("_")[:1].islower():
        of_module = [tests for function, tests in of_function.items() if function.startswith(f"{fault.module} ")]
        took = {test: seconds for tests in of_module for test, seconds in tests.items()}
    ordered = sorted(took, key=lambda test: (own not in test, took[test]))
    until = accumulate(took[test] for test in ordered)
    return [test for test, seconds in zip(ordered, until, strict=True) if seconds <= LONGEST]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.planted")
    parser.add_argument("--list", action="store_true", help="print the faults, plant none")
    parser.add_argument("seed", nargs="?", type=int, default=1)
    parser.add_argument("count", nargs="?", type=int, default=COUNT)
    parser.add_argument("rooms", nargs="*", metavar="room", help=f"{', '.join(ROOMS)}; all of them where none is named")
    given = parser.parse_args()
    if unknown := set(given.rooms) - set(ROOMS):
        parser.error(f"no room {', '.join(sorted(unknown))}: there are {', '.join(ROOMS)}")
    faults = list(drawn(given.seed, given.count, rooms := given.rooms or list(ROOMS)))
    if given.list:
        for room, fault in faults:
            print(f"{room:<9} {fault.name((ROOT / fault.module).read_bytes())}")
        return 0
    log = Path(tempfile.gettempdir()) / f"planted-{ROOT.name}-{given.seed}.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    results = {line["planted"]: line for line in lines}
    keys = [identified(fault)["planted"] for _, fault in faults]
    with (
        tempfile.TemporaryDirectory(prefix="planted-") as folder,
        ProcessPoolExecutor(AT_ONCE, get_context("spawn"), initializer=started_warm, initargs=(Path(folder),)) as pool,
    ):
        of_function = merged(pool.map(callers, *zip(*parts(), strict=True), repeat(kept())))
        todo = [pair for pair, key in zip(faults, keys, strict=True) if not results.get(key, {}).get("by")]
        for done in as_completed([pool.submit(run, *pair, called_by(pair[1], of_function)) for pair in todo]):
            result = done.result()
            results[result["planted"]] = result
            with log.open("a") as file:
                file.write(json.dumps(result) + "\n")
            print(f"{result['seconds']:>4} s  {result['by'] or 'NOT CAUGHT':<70.70}  {result['name']}", flush=True)
    return told([results[key] for key in keys], rooms)


def told(results: Sequence[dict[str, Any]], rooms: Sequence[str]) -> int:
    """Print the faults that were not caught, and the figures."""
    for result in results:
        if not result["by"]:
            print(f"\nnot caught ({result['operator']}): {result['name']}", *result["diff"], sep="\n    ")
    for room in rooms:
        of_room = [bool(result["by"]) for result in results if result["room"] == room]
        print(f"{room}: caught {sum(of_room)} of {len(of_room)}")
    caught = sum(bool(result["by"]) for result in results)
    print(f"planted faults caught: {caught} of {len(results)} (must be >= {LEAST_CAUGHT:.0%})")
    return int(caught < LEAST_CAUGHT * len(results))


if __name__ == "__main__":
    sys.exit(main())
