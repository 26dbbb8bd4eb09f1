"""The page in MLflow, beside its run: there if MLflow knows that run, and nothing but a warning where it cannot be."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import refed_dspy
from refed_dspy.plugins.share.report.report import report
from refed_dspy.tracking.store import NOTE
from refed_dspy.tracking.track import log_page
from tests.support import mlflow_stores
from tests.support.mlflow_stores import PASSWORD, Mlflow, free_port
from tests.support.scripted_engine import Writer, fake_lm, references

pytestmark = pytest.mark.slow  # MLflow alone takes seconds to import
mlflow_template = mlflow_stores.mlflow_template


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, mlflow_template: Path) -> Iterator[Mlflow]:
    with mlflow_stores.tracked_to(tmp_path_factory.mktemp("pages") / "mlflow", mlflow_template) as opened:
        yield opened


@pytest.fixture(scope="module")
def run(store: Mlflow, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that MLflow knows."""
    return made(tmp_path_factory.mktemp("known") / "run")


def made(folder: Path, **settings: Any) -> Path:
    refed_dspy.synthesize(None, references(1), size=1, teacher=fake_lm(Writer()), run_dir=folder, **settings)
    return folder


def pages(store: Mlflow) -> list[str]:
    """Whatever files MLflow has that are named as a page is."""
    files = [file.path for run in store.runs() for file in store.client.list_artifacts(run.info.run_id)]
    return [path for path in files if path.endswith(".html")]


def warned(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_page_is_logged_with_its_run_unless_switched_off(
    store: Mlflow, run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    report(run, track=False)
    assert pages(store) == []
    page = report(run)
    (logged,) = store.runs()
    assert pages(store) == ["report.html"] and not warned(caplog)
    fetched = Path(store.client.download_artifacts(logged.info.run_id, "report.html", str(tmp_path)))
    assert fetched.read_bytes() == page.read_bytes()
    assert log_page(run, page) is True


def test_a_run_that_mlflow_does_not_know_stays_unknown(
    store: Mlflow, run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, mlflow_template: Path
) -> None:
    before = store.everything()
    folder = made(tmp_path / "other", track=False)
    page = report(folder)
    assert page.is_file() and log_page(folder, page) is False
    assert not (folder / NOTE).exists() and store.everything() == before
    shutil.copy(mlflow_template, tmp_path / "another.db")
    store.use(f"sqlite:///{tmp_path}/another.db")  # whose runs are others
    try:
        noted = (run / NOTE).read_bytes()
        assert log_page(run, page) is False and (run / NOTE).read_bytes() == noted
    finally:
        store.use()
    assert store.everything() == before and not warned(caplog)


def test_an_unreachable_server_is_a_warning_and_the_page_is_made(
    store: Mlflow, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    port = free_port()
    away = f"http://user:{PASSWORD}@127.0.0.1:{port}"
    run = made(tmp_path / "away")  # MLflow keeps in mind where files of a run go that it was asked about before
    noted = (run / NOTE).read_text()
    (run / NOTE).write_text(noted.replace(store.uri, f"http://127.0.0.1:{port}"))
    store.use(away)
    try:
        page = report(run)
    finally:
        store.use()
    (warning,) = warned(caplog)
    assert page.stat().st_size > 50_000
    assert str(page) in warning and str(run) in warning and "\n" not in warning
    assert PASSWORD not in warning and "Traceback" not in caplog.text
