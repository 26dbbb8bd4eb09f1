"""Which tests assert sentences, so that a better word would break them?

`python -m benchmarks.sentences [FOLDER]` prints each such test function of FOLDER (tests/) with its line, and how many
there are. A sentence is a text of two words or more in an `assert`, in `pytest.raises(…, match=…)` or in
`pytest.warns(…, match=…)`: `"the budget"` is one, `"budget"` is not. What a snapshot holds is not counted: one command
writes it anew.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

SENTENCE = re.compile(r"[A-Za-z]{2}.*\s.*[A-Za-z]{2}", re.DOTALL)


def asserted(function: ast.AST) -> Iterator[str]:
    """Every text that this function's asserts hold, and its patterns of `match=`."""
    for node in ast.walk(function):
        if isinstance(node, ast.Assert):
            texts: list[ast.AST] = [node.test]
        elif isinstance(node, ast.keyword) and node.arg == "match":
            texts = [node.value]
        else:
            continue
        for text in texts:
            for part in ast.walk(text):
                if isinstance(part, ast.Constant) and isinstance(part.value, str):
                    yield part.value


def asserting(path: Path) -> Iterator[tuple[int, str, str]]:
    """(line, name, the first sentence) of each test function in a file that asserts one."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or not node.name.startswith("test_"):
            continue
        if found := next((text for text in asserted(node) if SENTENCE.search(text)), None):
            yield node.lineno, node.name, found


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "tests")
    files = [folder] if folder.is_file() else sorted(folder.rglob("test_*.py"))
    count = 0
    for path in files:
        for line, name, text in sorted(asserting(path)):
            count += 1
            print(f"{path}:{line} {name}: {text!r}")
    print(f"{count} test functions assert sentences")


if __name__ == "__main__":
    main()
