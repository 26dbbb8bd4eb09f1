"""What DSPy's optimizers print and log goes to a file; what a caller's own code prints stays where it was."""

from __future__ import annotations

import logging
import sys
import threading
import time
from pathlib import Path

import pytest
import tqdm  # type: ignore[import-untyped]

from refed_dspy.optimizers.dspy_optimizers import LOG, printed_to_file
from tests.support.said import Said

LOGGED, PRINTED = "Average Metric", "Best score so far"
DSPY = logging.getLogger("dspy.teleprompt.fake")


def everything() -> None:
    """What a compile hears: a log's line, a bar, a line of DSPy's own, and one of the caller's metric."""
    DSPY.info(LOGGED)
    list(tqdm.tqdm([1, 2]))
    exec(f"print({PRINTED!r})", {"__name__": "dspy.teleprompt.random_search"})
    sys.stdout.write("my metric\n")
    sys.stderr.write("my warning\n")


def test_what_optimizers_print_log_and_draw_is_in_the_folder(
    said: Said, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "dspy")
    before = list(logging.getLogger("dspy").handlers), logging.getLogger("dspy").propagate, sys.stdout, sys.stderr
    with printed_to_file(tmp_path):
        everything()
        with printed_to_file(tmp_path / "another compile at the same time"):
            everything()
    said(capsys.readouterr())
    log = (tmp_path / LOG).read_text()
    assert log.count(LOGGED) == log.count(PRINTED) == 2 and "2/2 [" in log
    dspy_log = logging.getLogger("dspy")
    assert before == (list(dspy_log.handlers), dspy_log.propagate, sys.stdout, sys.stderr)


def test_what_the_optimizer_s_threads_say_after_ctrl_c_is_in_the_file_too(
    said: Said, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "dspy")
    interrupted = threading.Event()

    def evaluating() -> None:
        interrupted.wait()
        time.sleep(0.1)
        DSPY.error("Error for an example: the compile has ended")

    with pytest.raises(KeyboardInterrupt), printed_to_file(tmp_path):
        threading.Thread(target=evaluating).start()
        interrupted.set()
        raise KeyboardInterrupt
    assert not caplog.records
    said((tmp_path / LOG).read_text())


def test_whoever_asks_dspy_for_every_word_gets_it(
    said: Said, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "dspy")
    with printed_to_file(tmp_path):
        everything()
    assert not (tmp_path / LOG).exists()
    said(capsys.readouterr().out)
