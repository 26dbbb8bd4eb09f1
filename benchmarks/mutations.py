"""The faults that can be planted in a module: every place where one of the operators below changes what the code does.

Left alone is what cannot be a fault of behaviour, or is a matter of choice: annotations, docstrings, decorators,
f-strings, what is logged, what an error says, asserts, `zip(strict=…)`, floats, numbers above ten, and those that a
module names in capitals (tuning).
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import unified_diff
from pathlib import Path

COMPARISONS: dict[type[ast.cmpop], ast.cmpop] = {
    ast.Lt: ast.LtE(), ast.LtE: ast.Lt(), ast.Gt: ast.GtE(), ast.GtE: ast.Gt(), ast.Eq: ast.NotEq(),
    ast.NotEq: ast.Eq(), ast.Is: ast.IsNot(), ast.IsNot: ast.Is(), ast.In: ast.NotIn(), ast.NotIn: ast.In(),
}  # fmt: skip
ARITHMETIC: dict[type[ast.operator], ast.operator] = {
    ast.Add: ast.Sub(), ast.Sub: ast.Add(), ast.Mult: ast.FloorDiv(), ast.Div: ast.Mult(), ast.FloorDiv: ast.Mult(),
}  # fmt: skip
NAMES = {"min": "max", "max": "min", "any": "all", "all": "any"}
SQL = re.compile(r"\b(SELECT|INSERT|UPDATE|DELETE)\b|\bWHERE\b|\bON CONFLICT\b|\bUNION\b")
SQL_CHANGES = (
    (r"\bAND\b", "OR"), (r"\bOR IGNORE\b", "OR REPLACE"), (r"\bOR REPLACE\b", "OR IGNORE"), (r"\bIS NOT\b", "IS"),
    (r"\bIS NULL\b", "IS NOT NULL"), (r"\bNOT (?=IN|EXISTS|final)", ""), (r"\bmax\(", "min("), (r", 0\)", ", 1)"),
    (r"(?<=WHERE )(\w+) ?= ?", r"\1 != "), (r"<", "<="), (r" DESC\b", ""), (r"\bDISTINCT ", ""),
)  # fmt: skip
LARGEST = 10


@dataclass(frozen=True)
class Fault:
    """`text` in place of the bytes from `start` to `end` of `module`, a path in the repository."""

    module: str
    function: str
    operator: str
    start: int
    end: int
    text: str

    def planted(self, source: bytes) -> bytes:
        return source[: self.start] + self.text.encode() + source[self.end :]

    def diff(self, source: bytes) -> list[str]:
        """The lines that it changes, without headers: `-…` and `+…`."""
        first, ends = source.rfind(b"\n", 0, self.start) + 1, source.find(b"\n", self.end)
        last = ends if ends >= 0 else len(source)
        after = source[first : self.start] + self.text.encode() + source[self.end : last]
        lines = (source[first:last].decode().splitlines(), after.decode().splitlines())
        return [line for line in unified_diff(*lines, n=0, lineterm="") if not line.startswith(("---", "+++", "@@"))]

    def change(self, source: bytes) -> str:
        """Function and lines: stays the same while other lines change, and where the function moves to another file."""
        lines = [f"{line[0]} {line[1:].strip()}" for line in self.diff(source)]
        return f"{self.function}: {' '.join(lines)}"

    def name(self, source: bytes) -> str:
        """For people."""
        return f"{self.module} {self.change(source)}"


def faults_of(root: Path, module: str) -> list[Fault]:
    """Every fault of a module, in the order of the text."""
    source = (root / module).read_bytes()
    visitor = _Visitor(module, source)
    visitor.visit(ast.parse(source))
    return visitor.faults


class _Visitor(ast.NodeVisitor):
    def __init__(self, module: str, source: bytes) -> None:
        self.module, self.source = module, source
        self.faults: list[Fault] = []
        self._lines = [0]
        for line in source.splitlines(keepends=True):
            self._lines.append(self._lines[-1] + len(line))
        self._where: list[str] = []
        self._bound: set[str] = set()
        """Local names that have a value already: a later assignment can be dropped."""

    def _add(self, operator: str, node: ast.expr | ast.stmt, text: str) -> None:
        assert node.end_lineno is not None and node.end_col_offset is not None
        start = self._lines[node.lineno - 1] + node.col_offset
        end = self._lines[node.end_lineno - 1] + node.end_col_offset
        self.faults.append(Fault(self.module, ".".join(self._where), operator, start, end, text))

    def _change(self, operator: str, node: ast.expr, changed: ast.expr) -> None:
        self._add(operator, node, f"({ast.unparse(changed)})")

    # --- what is left alone

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self._body(node.name, node.body)

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        before, arguments = self._bound, node.args
        self._bound = {a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)} - {"self"}
        for default in (*arguments.defaults, *arguments.kw_defaults):
            if default is not None:
                self.visit(default)
        self._body(node.name, node.body)
        self._bound = before

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
        self.visit_FunctionDef(node)

    def _body(self, name: str, body: list[ast.stmt]) -> None:
        self._where.append(name)
        for statement in body:
            self.visit(statement)
        self._where.pop()

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        pass

    def visit_Assert(self, node: ast.Assert) -> None:
        pass

    def visit_If(self, node: ast.If) -> None:
        if ast.unparse(node.test) != "TYPE_CHECKING":
            self.generic_visit(node)

    # --- statements

    def visit_Raise(self, node: ast.Raise) -> None:
        self._add("statement dropped", node, "pass")

    def visit_Continue(self, node: ast.Continue) -> None:
        self._add("statement dropped", node, "pass")

    def visit_Break(self, node: ast.Break) -> None:
        self._add("statement dropped", node, "pass")

    def visit_Return(self, node: ast.Return) -> None:
        if node.value is None:
            self._add("statement dropped", node, "pass")
        elif ast.unparse(node.value) != "None":
            self._add("None returned", node, "return None")
            self.visit(node.value)

    def visit_Expr(self, node: ast.Expr) -> None:
        call = node.value.value if isinstance(node.value, ast.Await) else node.value
        if isinstance(call, ast.Call) and not ast.unparse(call.func).startswith("log."):
            self._add("statement dropped", node, "pass")
            self.visit(call)

    def visit_Assign(self, node: ast.Assign) -> None:
        if not self._where and not _is_text(node.value):
            return
        names = [target for target in ast.walk(node) if isinstance(getattr(target, "ctx", None), ast.Store)]
        known = all(not isinstance(name, ast.Name) or name.id in self._bound for name in names)
        if known and self._where and self._where[-1] != "__init__" and self._where[-1][0].islower():
            self._add("statement dropped", node, "pass")
        self._bound |= {name.id for name in names if isinstance(name, ast.Name)}
        self.visit(node.value)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if isinstance(node.target, ast.Name):
            self._bound.add(node.target.id)
        if node.value is not None and ast.unparse(node.annotation) != "TypeAlias":
            self.visit(node.value)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self._add("statement dropped", node, "pass")
        if (other := ARITHMETIC.get(type(node.op))) is not None and not _is_text(node.value):
            self._add("arithmetic", node, ast.unparse(ast.AugAssign(node.target, other, node.value)))
        self.visit(node.value)

    # --- expressions

    def visit_Compare(self, node: ast.Compare) -> None:
        for at, op in enumerate(node.ops):
            ops = [*node.ops[:at], COMPARISONS[type(op)], *node.ops[at + 1 :]]
            self._change("comparison", node, ast.Compare(node.left, ops, node.comparators))
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        other = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        self._change("and / or", node, ast.BoolOp(other, node.values))
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        if isinstance(node.op, ast.Not):
            self._change("not removed", node, node.operand)
        elif isinstance(node.op, ast.USub):
            self._change("sign", node, node.operand)
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        if (other := ARITHMETIC.get(type(node.op))) is not None and not (_is_text(node.left) or _is_text(node.right)):
            self._change("arithmetic", node, ast.BinOp(node.left, other, node.right))
        self.generic_visit(node)

    def visit_IfExp(self, node: ast.IfExp) -> None:
        self._change("branches swapped", node, ast.IfExp(node.test, node.orelse, node.body))
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        function = ast.unparse(node.func)
        if function in NAMES:
            self._change("min / max, any / all", node, ast.Call(ast.Name(NAMES[function]), node.args, node.keywords))
        if function in {"cast", "TypeVar", "isinstance", "ContextVar"} or function.startswith("log."):
            return
        for child in (node.func, *node.args, *(k.value for k in node.keywords if k.arg != "strict")):
            self.visit(child)

    def visit_Subscript(self, node: ast.Subscript) -> None:
        self.visit(node.value)
        if isinstance(node.slice, ast.Constant) and node.slice.value == 0:
            self._add("constant", node.slice, "1")  # the last one is often the first one
        else:
            self.visit(node.slice)

    def visit_Constant(self, node: ast.Constant) -> None:
        value = node.value
        if isinstance(value, bool):
            self._add("True / False", node, str(not value))
        elif isinstance(value, int) and abs(value) <= LARGEST:
            self._add("constant", node, str(value + 1))
            self._add("constant", node, f"({value - 1})")
        elif isinstance(value, str) and SQL.search(value):
            for text in _changed_sql(value):
                self._change("SQL", node, ast.Constant(text))


def _is_text(node: ast.expr) -> bool:
    """Whether it is text, or a tuple or list: neither can be subtracted."""
    return isinstance(node, ast.JoinedStr | ast.Tuple | ast.List) or (
        isinstance(node, ast.Constant) and not isinstance(node.value, int | float)
    )


def _changed_sql(text: str) -> Iterator[str]:
    """`text` with one place changed at a time."""
    for pattern, instead in SQL_CHANGES:
        for match in re.finditer(pattern, text):
            yield text[: match.start()] + match.expand(instead) + text[match.end() :]


NOTING = """
import builtins as _builtins, contextlib as _contextlib, os as _os
def _called_(name):
    seen = vars(_builtins).setdefault("_seen", set())
    if name not in seen:
        seen.add(name)
        with _contextlib.suppress(OSError):  # a test's full disk
            file = _os.open({into!r}, _os.O_WRONLY | _os.O_APPEND)
            try:
                _os.write(file, name.encode() + b"\\n")
            finally:
                _os.close(file)
"""


def traced(module: str, source: bytes, into: Path) -> bytes:
    """`source` with each function adding its name, as `Fault.function` has it, to the file `into`: once until the set
    `builtins._seen` is emptied. A program that a test starts writes there, too, wherever it finds its modules."""
    tree = ast.parse(source)
    _trace(tree, module, ())
    docstring = int(ast.get_docstring(tree) is not None)
    future = sum(isinstance(node, ast.ImportFrom) and node.module == "__future__" for node in tree.body)
    at = docstring + future
    tree.body[at:at] = ast.parse(NOTING.format(into=str(into))).body
    return ast.unparse(tree).encode()


def _trace(node: ast.AST, module: str, where: tuple[str, ...]) -> None:
    for child in list(ast.iter_child_nodes(node)):
        if not isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            _trace(child, module, where)
            continue
        inside = (*where, child.name)
        _trace(child, module, inside)
        if not isinstance(child, ast.ClassDef):
            note = ast.parse(f"_called_({f'{module} ' + '.'.join(inside)!r})").body
            child.body[1 if ast.get_docstring(child) else 0 : 0] = note
