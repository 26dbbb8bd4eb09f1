"""Whatever the package imports is declared in pyproject.toml: nothing is had by the luck that another brings it."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

ROOT = Path(__file__).parents[1]
NOT_OURS = {
    "IPython",  # where a notebook runs, it is there
    "pydantic_core",  # pydantic's own half, of one version with it
}
ELSEWHERE = ROOT / "refed_dspy" / "plugins" / "evaluate" / "ifeval" / "check.py"
"""Runs in an environment of its own."""


def imported() -> Iterator[tuple[str, Path]]:
    """(top-level module, file) of every import."""
    for file in (ROOT / "refed_dspy").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                yield from ((alias.name.partition(".")[0], file) for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                yield node.module.partition(".")[0], file


def distribution(requirement: str) -> str:
    """The normalized name of what is required: `scikit-learn` of `scikit_learn>=1.5`."""
    name = re.match(r"[\w.-]+", requirement)
    assert name is not None
    return re.sub(r"[-_.]+", "-", name[0]).lower()


def test_every_import_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = [
        each for name, of in project["optional-dependencies"].items() if name not in {"dev", "docs"} for each in of
    ]
    declared = {distribution(each) for each in [*project["dependencies"], *extras]}
    known = packages_distributions()
    undeclared = {
        f"{module} ({file.relative_to(ROOT)})"
        for module, file in imported()
        if module not in {*sys.stdlib_module_names, *NOT_OURS, "refed_dspy"}
        and file != ELSEWHERE
        and not {distribution(each) for each in known.get(module, [module])} & declared
    }
    assert not undeclared
