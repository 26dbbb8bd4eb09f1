"""The wheel in an empty environment: what an install brings and why, and how soon the command answers.

    python -m benchmarks.install [--python INTERPRETER]

Builds the wheel and installs it with today's versions of its dependencies, from the package index that pip is set up
for. Sizes are those of the files in site-packages without bytecode, but for the first,
which is what `pip install` leaves there. "Alone" is what would go if the dependency went.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from importlib.metadata import Distribution, distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

NEEDED = ("dspy", "datasets", "pydantic", "openai", "mlflow")
"""The dependencies that the package is made of."""
COMMANDS = {
    "import refed_dspy": ("python", "-c", "import refed_dspy"),
    "refed --help": ("refed", "--help"),
    "refed synth --help": ("refed", "synth", "--help"),
}


class Installed:
    """The packages in a folder, by name and extras; and what each needs there."""

    def __init__(self, site: Path) -> None:
        self._found: dict[str, Distribution] = {
            canonicalize_name(each.metadata["Name"]): each for each in distributions(path=[str(site)])
        }

    def needs(self, name: str, extras: Iterable[str] = ()) -> list[tuple[str, tuple[str, ...]]]:
        wanted = map(Requirement, self._found[name].requires or ())
        chosen = [
            each
            for each in wanted
            if each.marker is None or any(each.marker.evaluate({"extra": extra}) for extra in ("", *extras))
        ]
        return [(canonicalize_name(each.name), tuple(sorted(each.extras))) for each in chosen]

    def closure(self, roots: Iterable[tuple[str, tuple[str, ...]]]) -> set[str]:
        """`roots` and all that they bring."""
        seen: set[tuple[str, tuple[str, ...]]] = set()
        left = list(roots)
        while left:
            if (each := left.pop()) not in seen and each[0] in self._found:
                seen.add(each)
                left += self.needs(*each)
        return {name for name, _ in seen}

    def megabytes(self, names: Iterable[str]) -> float:
        files = {path for name in names for path in _files(self._found[name])}  # MLflow's three packages share some
        return sum(path.stat().st_size for path in files) / 1e6


def _files(package: Distribution) -> Iterator[Path]:
    for file in package.files or ():
        path = Path(str(file.locate()))
        if file.parts[0] != ".." and file.suffix != ".pyc" and path.is_file():
            yield path


def report(installed: Installed) -> list[str]:
    """A row a direct dependency, those that bring most alone first."""
    direct = installed.needs("refed-dspy")
    everything = installed.closure([("refed-dspy", ())])
    needed = installed.closure(each for each in direct if each[0] in NEEDED)
    rows = []
    for each in direct:
        without = installed.closure(other for other in direct if other != each) | {"refed-dspy"}
        brought = "brought by the five as well" if each[0] in needed and each[0] not in NEEDED else ""
        count, size = len(everything - without), installed.megabytes(everything) - installed.megabytes(without)
        rows.append((size, f"{each[0]:18} {installed.megabytes([each[0]]):7.1f} {count:5} {size:7.1f}  {brought}"))
    return [
        f"{len(everything)} packages, {installed.megabytes(everything):.0f} MB; "
        f"{', '.join(NEEDED)}: {len(needed)}, {installed.megabytes(needed):.0f} MB",
        f"{'':18} {'MB':>7} {'alone':>5} {'MB':>7}",
        *(row for _, row in sorted(rows, reverse=True)),
    ]


def times(command: list[str], repeats: int = 10) -> tuple[float, float]:
    """Best and median seconds of a whole process."""
    taken = []
    for _ in range(repeats):
        began = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        taken.append(time.perf_counter() - began)
    return min(taken), statistics.median(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=sys.executable, help="the environment's interpreter")
    with tempfile.TemporaryDirectory() as folder:
        env = Path(folder) / "env"
        subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder], check=True)
        subprocess.run([parser.parse_args().python, "-m", "venv", str(env)], check=True)
        (wheel,) = Path(folder).glob("*.whl")
        began = time.perf_counter()
        subprocess.run([env / "bin/python", "-m", "pip", "install", "-q", str(wheel)], check=True)
        print(f"installed in {time.perf_counter() - began:.0f} s")
        (site,) = env.glob("lib/python*/site-packages")
        size = sum(path.stat().st_size for path in site.rglob("*") if path.is_file())
        print(f"{size / 1e6:.0f} MB with bytecode and pip")
        print("\n".join(report(Installed(site))))
        for name, (program, *rest) in COMMANDS.items():
            best, median = times([str(env / "bin" / program), *rest])
            print(f"{name}: {best:.3f} s, median {median:.3f} s of 10")


if __name__ == "__main__":
    main()
