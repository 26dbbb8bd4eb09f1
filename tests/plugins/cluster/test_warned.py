from __future__ import annotations

import logging

from refed_dspy.plugins.cluster.worker import MOST, Warned
from tests.support.said import Said


def test_warnings_of_the_package_each_once(said: Said) -> None:
    log = logging.getLogger("refed_dspy.teachers")
    with Warned() as warned:
        for _ in range(2):
            log.warning("%s\nis slow", "the endpoint")
        log.info("all is well")
        logging.getLogger("another").warning("of another package")
    log.warning("after it")
    said(warned.texts)


def test_so_many_and_no_more() -> None:
    with Warned() as warned:
        for number in range(2 * MOST):
            logging.getLogger("refed_dspy").warning("number %d", number)
    assert len(warned.texts) == MOST
