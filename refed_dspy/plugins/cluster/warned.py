"""The warnings of workers, shown where the run was started: a worker's own log is on its node, where nobody looks."""

from __future__ import annotations

import logging

from refed_dspy.errors import one_line

MOST = 20
"""Texts of one worker. They travel with each of its reports."""


class Warned(logging.Handler):
    """Collects the texts of this package's warnings while it is entered, each once."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = one_line(record.getMessage(), 600)
        if text not in self.texts and len(self.texts) < MOST:
            self.texts.append(text)

    def __enter__(self) -> Warned:
        logging.getLogger("refed_dspy").addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger("refed_dspy").removeHandler(self)
