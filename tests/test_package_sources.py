"""What the package's source says: which programs it starts, and how; what it imports, and that it is declared."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from tests.support import ROOT

STARTS = {"run", "Popen", "call", "check_call", "check_output", "create_subprocess_exec", "create_subprocess_shell"}
NOT_OURS = {
    "IPython",  # where a notebook runs, it is there
    "pydantic_core",  # pydantic's own half, of one version with it
}
ELSEWHERE = Path("refed_dspy/plugins/evaluate/ifeval/check.py")
"""Runs in an environment of its own."""


@pytest.fixture(scope="module")
def sources() -> dict[Path, ast.Module]:
    files = sorted((ROOT / "refed_dspy").rglob("*.py"))
    return {path.relative_to(ROOT): ast.parse(path.read_text("utf-8")) for path in files}


def test_every_program_is_started_with_an_environment_of_ours(sources: dict[Path, ast.Module]) -> None:
    found = [
        (f"{path}:{node.lineno}", ast.unparse(node))
        for path, source in sources.items()
        for node in ast.walk(source)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in STARTS
        if ast.unparse(node.func.value) in {"subprocess", "asyncio", "os"} and ast.unparse(node.func) != "asyncio.run"
    ]
    assert len(found) >= 5
    for where, code in found:
        assert "env=" in code and ("children.environment(" in code or "command.environment()" in code), where


def test_every_python_is_started_by_children(sources: dict[Path, ast.Module]) -> None:
    """uv makes an environment of this interpreter, and runs nothing in it."""
    for path in sources:
        for line in (ROOT / path).read_text("utf-8").splitlines():
            assert "sys.executable" not in line or "uv" in line or path.name == "children.py", f"{path}: {line}"


def distribution(requirement: str) -> str:
    """The normalized name of what is required: `scikit-learn` of `scikit_learn>=1.5`."""
    name = re.match(r"[\w.-]+", requirement)
    assert name is not None
    return re.sub(r"[-_.]+", "-", name[0]).lower()


def test_every_import_is_declared(sources: dict[Path, ast.Module]) -> None:
    """Nothing is had by the luck that another brings it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = (of for name, of in project["optional-dependencies"].items() if name not in {"dev", "docs"})
    declared = {distribution(each) for each in [*project["dependencies"], *(each for of in extras for each in of)]}
    imported: dict[str, Path] = {}
    for path, source in sources.items():
        for node in ast.walk(source) if path != ELSEWHERE else ():
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0]: path for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                imported[node.module.partition(".")[0]] = path
    known = packages_distributions()
    undeclared = {
        module: path
        for module, path in imported.items()
        if module not in {*sys.stdlib_module_names, *NOT_OURS, "refed_dspy"}
        and not {distribution(each) for each in known.get(module, [module])} & declared
    }
    assert not undeclared
