"""Chromium, headless, as Debian packages it: `apt-get install chromium`, or a path in REFED_CHROMIUM."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from refed_dspy.plugins.share.report.report import report
from tests.support.example_run import shown_run


@dataclass
class Opened:
    """A page in the browser, and all that it did besides showing itself."""

    page: Any
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    """Console errors and warnings, uncaught errors, dialogs."""

    def console(self, message: Any) -> None:
        if message.type in {"error", "warning"}:
            self.complaints.append(message.text)

    def dialog(self, dialog: Any) -> None:
        self.complaints.append(f"dialog {dialog.message}")
        dialog.dismiss()

    def ready(self) -> Any:
        """The page, once its rows are listed and indexed."""
        self.page.wait_for_selector("html[data-state=ready]")
        return self.page


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    path = os.environ.get("REFED_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    assert path, "no Chromium here: apt-get install chromium, or set REFED_CHROMIUM to one"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    os.environ["REFED_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    return shown_run(tmp_path_factory.mktemp("shown") / "run", size=60)


@pytest.fixture(scope="session")
def page_file(run_dir: Path) -> Path:
    return report(run_dir)


@pytest.fixture
def browse(chromium: Any) -> Iterator[Callable[..., Opened]]:
    """`browse(path, **context)` opens a file from disk."""
    contexts = []

    def opened(path: Path, fragment: str = "", **settings: Any) -> Opened:
        context = chromium.new_context(**{"viewport": {"width": 1400, "height": 900}, **settings})
        contexts.append(context)
        result = Opened(context.new_page())
        result.page.set_default_timeout(20_000)
        result.page.on("request", lambda request: result.requests.append(request.url))
        result.page.on("console", result.console)
        result.page.on("pageerror", lambda error: result.complaints.append(str(error)))
        result.page.on("dialog", result.dialog)
        result.page.goto(path.as_uri() + fragment)
        return result

    yield opened
    for context in contexts:
        context.close()
