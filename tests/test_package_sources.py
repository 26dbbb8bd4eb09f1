"""What the package's source says: which programs it starts, and how; what it imports, and that it is declared."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections import Counter
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


UNTIL_DSPY_3_5 = {
    ("refed_dspy/programs/adapter.py", "Adapter.format"): 3,
    ("refed_dspy/programs/adapter.py", "BaseLM.forward"): 2,
    ("refed_dspy/teachers/foreign.py", "a call with messages"): 1,
}
"""(File, what DSPy 3.5 takes away) → how often the file uses it. docs/dspy-3-5.md says what becomes of each."""
WRAPPERS = {"LegacyEngine", "AsyncLegacyEngine", "complete_legacy"}
TAKE_MESSAGES = {"Request", "replace", "dspy.History"}
"""What is called with `messages` of the form that stays, or that is none of a language model's."""


def goes_with_dspy_3_5(node: ast.AST) -> str | None:
    """What DSPy 3.5 takes away, where `node` is a use of it."""
    if isinstance(node, ast.Attribute):
        of = ast.unparse(node.value)
        if node.attr == "format" and of.lower().endswith("adapter"):
            return "Adapter.format"
        if node.attr in {"forward", "aforward"} and re.search(r"LM$|\blm\b", of):
            return "BaseLM.forward"
    if isinstance(node, ast.Call) and any(keyword.arg == "messages" for keyword in node.keywords):
        return None if ast.unparse(node.func) in TAKE_MESSAGES else "a call with messages"
    if isinstance(node, ast.ClassDef):
        methods = {each.name for each in node.body if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)}
        kinds = {"LM": {"forward", "aforward"}, "Adapter": {"format"}}
        own = [name for base in node.bases for kind, names in kinds.items() if ast.unparse(base).endswith(kind)
               for name in names & methods]  # fmt: skip
        return own[0] if own else None
    name = getattr(node, "attr", getattr(node, "id", None))
    return name if name in WRAPPERS else None


def test_what_dspy_3_5_takes_away_is_used_only_where_the_page_says(sources: dict[Path, ast.Module]) -> None:
    """What calls itself with `messages` is seen at run time, too: pyproject.toml makes DSPy's warning an error."""
    found = Counter(
        (path.as_posix(), what)
        for path, source in sources.items()
        for node in ast.walk(source)
        if (what := goes_with_dspy_3_5(node)) is not None
    )
    assert found == UNTIL_DSPY_3_5
    page = (ROOT / "docs/dspy-3-5.md").read_text("utf-8")
    assert [path for path, _ in found if path.removeprefix("refed_dspy/") not in page] == []
