"""Tell MLflow of a folder afterwards."""

from __future__ import annotations

import logging
import shlex
from pathlib import Path

from refed_dspy.errors import RunDirError
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.tracking.compile import copy_compile
from refed_dspy.tracking.run import copy_run
from refed_dspy.tracking.store import TOP, NotTracked, Store, noted_run

log = logging.getLogger(__name__)


def track(folder: Path | str) -> str:
    """Tell MLflow all of the run or compile in `folder` that it was not told yet. Returns the run's id.

    Raises:
        RunDirError: neither is there.
        NotTracked: MLflow cannot be told.
    """
    place = Path(folder).absolute()
    with Ledger.read(place) as ledger:
        compiled, run = ledger.meta("compile"), ledger.meta("identity")
        begun = (compiled or run) and ledger.has_answers()
    if not begun:
        raise RunDirError(f"{folder}: nothing was answered here yet, so there is nothing to tell of")
    store = Store(place)
    store.connect()
    (copy_compile if compiled else copy_run)(store, True)
    return str(noted_run(place))


def log_page(folder: Path, page: Path) -> bool:
    """Give MLflow the page that shows the run in `folder`, if MLflow knows that run. Returns whether it has it now.

    Where MLflow cannot be told a warning says so, and nothing else happens: the page is a file, and can be made again.
    """
    if noted_run(folder) is None:  # MLflow takes seconds to import
        return False
    store = Store(folder)
    try:
        store.connect()
        known = (store.noted("runs") or {}).get(TOP)
        if known is not None:
            store.file(str(known), page)
        return known is not None
    except NotTracked as error:
        log.warning("MLflow did not take %s (%s); later: refed report %s", page, error, shlex.quote(str(folder)))
        return False
