"""The page of a run that goes on, in a real browser: it fills, and leaves alone what a person does in it."""

from __future__ import annotations

import shutil
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from refed_dspy.ledger.connection import FILE
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.plugins.share.report.watch import ReportServer

pytestmark = pytest.mark.browser


def test_rows_come_and_nothing_that_is_open_closes(chromium: Any, run_dir: Path, tmp_path: Path) -> None:
    shutil.copy(run_dir / FILE, tmp_path)
    from playwright.sync_api import expect

    with Ledger.create(tmp_path) as ledger, ReportServer(tmp_path) as server:
        ledger.set_meta(size=500)
        taken = ledger.db.execute("SELECT seq, instruction, created FROM samples WHERE seq > 40").fetchall()
        ledger.db.execute("DELETE FROM samples WHERE seq > 40")
        Thread(target=server.serve_forever, daemon=True).start()
        page, complaints = chromium.new_page(), list[str]()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.set_default_timeout(20_000)
        page.goto(f"{server.address}#sample-3")
        page.wait_for_selector("#detail[open]")
        page.select_option("#filter-feature", index=1)
        chosen, shown = page.input_value("#filter-feature"), page.inner_text("#detail")
        before = page.inner_text("#status")
        ledger.db.executemany("INSERT INTO samples VALUES (?, ?, ?)", taken)
        expect(page.locator("#status")).not_to_have_text(before, timeout=20_000)
        assert page.inner_text(".tile .value >> nth=0") == "60"
        assert page.inner_text("#detail") == shown and page.input_value("#filter-feature") == chosen
        assert page.locator("#rows-body [aria-selected=true]").count() == 1
        page.fill("#search", '"task 12:"')
        assert page.inner_text("#status").startswith(("0 of ", "1 of ")) and complaints == []
        server.shutdown()
        server.server_close()
        expect(page.locator("#live")).to_contain_text("Not followed any more", timeout=20_000)
        page.close()
