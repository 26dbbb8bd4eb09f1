"""A report page in headless Chromium, opened from disk: time until it is usable, and for a search or a sort."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import Any, Self

REPEATS = 7
# From the event to the second frame after it: by then the change has been painted.
_TIMED = """
async act => {
  const begun = performance.now();
  act();
  await new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)));
  return performance.now() - begun;
}
"""
_SEARCH = f"""
text => ({_TIMED})(() => {{
  const field = document.getElementById("search");
  field.value = text;
  field.dispatchEvent(new Event("input", {{bubbles: true}}));
}})
"""
_SORT = f"""column => ({_TIMED})(() => document.querySelector(`[data-column=${{column}}] button`).click())"""


class Browsing:
    """A browser for a `with` block: the one REFED_CHROMIUM names, else the `chromium` on the path."""

    def __enter__(self) -> Self:
        from playwright.sync_api import sync_playwright

        path = os.environ.get("REFED_CHROMIUM") or shutil.which("chromium")
        if path is None:
            raise SystemExit("no Chromium here: apt-get install chromium, or set REFED_CHROMIUM to one")
        self._playwright = sync_playwright().start()
        self._browser = self._playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._browser.close()
        self._playwright.stop()

    def measured(self, path: Path) -> Iterator[str]:
        """One printable line for each figure."""
        page = self._browser.new_page(viewport={"width": 1400, "height": 900})
        begun = time.perf_counter()
        page.goto(path.as_uri(), wait_until="commit")
        for state, event in (("list", "listed"), ("ready", "indexed")):
            page.wait_for_selector(f"html[data-state={state}], html[data-state=ready]", timeout=120_000)
            yield f"{event} {time.perf_counter() - begun:.1f} s after it was opened"
        for name, query in self._queries(page):
            yield _line(
                f"search {name}", [page.evaluate(_SEARCH, text) for _ in range(REPEATS) for text in ("", query)][1::2]
            )
        page.evaluate(_SEARCH, "")
        for column in ("instruction", "words", "change", "score", "cost", "number"):
            yield _line(f"sort by {column}", [page.evaluate(_SORT, column) for _ in range(REPEATS)])

    def _queries(self, page: Any) -> Iterator[tuple[str, str]]:
        """(name, search text), made of words in the page's first row."""
        words = page.inner_text("#rows-body .line").lower().replace(".", " ").split()
        longest = max(words, key=len)
        yield "for one letter", longest[0]
        yield "for a word", longest
        yield "for a part of words", longest[1:4]
        yield "for two words", f"{words[0]} {longest}"
        yield "for a phrase", f'"{words[1]} {words[2]}"'
        yield "for what is not there", "qqqq"


def _line(what: str, milliseconds: list[float]) -> str:
    return f"{what}: {median(milliseconds):.0f} ms, at most {max(milliseconds):.0f} (must be at most 100)"
