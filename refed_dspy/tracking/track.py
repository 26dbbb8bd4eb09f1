"""Copy a finished or stopped folder to MLflow: `refed track DIR`, and the page of `refed report`."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Callable
from pathlib import Path

from refed_dspy.config.keywords import checked
from refed_dspy.data.stored import EVALUATION
from refed_dspy.errors import RunDirError, briefly
from refed_dspy.files import path_of
from refed_dspy.ledger.connection import FILE
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.registry import TRACKED, plugged_in, registered
from refed_dspy.tracking.compile import copy_compile
from refed_dspy.tracking.run import copy_run
from refed_dspy.tracking.store import FOLDER_RUN, NotTracked, Store, noted_run

log = logging.getLogger(__name__)
_COPIES = {"run": copy_run, "comparison": copy_run, "compile": copy_compile}


@briefly
@checked
def track(folder: Path | str) -> str:
    """Log to MLflow what is new in the run, compile or evaluation in `folder`. Returns the id of its MLflow run.

    Raises:
        RunDirError: there is nothing to log, or work of another kind.
        NotTracked: MLflow cannot be reached, or refuses.
    """
    path = path_of(folder, "folder").absolute()
    copy = _copy_of(path)
    store = Store(path)
    store.connect()
    copy(store, True)
    return str(noted_run(path))


def _copy_of(folder: Path) -> Callable[[Store, bool], None]:
    """What copies the folder's kind of work. Raises RunDirError."""
    kind = "evaluation"
    if not (folder / EVALUATION).is_file() or (folder / FILE).is_file():  # else by a program: no model was called
        with Ledger.read(folder) as ledger:
            kind = ledger.holds()
            if not ledger.has_answers():
                raise RunDirError(f"{folder}: no answers yet, so nothing to log")
    if kind not in _COPIES and kind not in registered(TRACKED):
        raise RunDirError(
            f"{folder}: its work ({kind}) is not logged; only runs, comparisons, compiles and evaluations are"
        )
    copy: Callable[[Store, bool], None] = _COPIES.get(kind) or plugged_in(TRACKED, kind)
    return copy


def log_page(folder: Path, page: Path) -> bool:
    """Log the page about the run in `folder` to MLflow, if that run is tracked. Returns whether MLflow has it now.

    Where MLflow fails there is a warning and nothing else: the page is a file, and can be made again.
    """
    if noted_run(folder) is None:  # MLflow takes seconds to import
        return False
    store = Store(folder)
    try:
        store.connect()
        run_id = (store.noted("runs") or {}).get(FOLDER_RUN)
        if run_id is not None:
            store.file(str(run_id), page)
        return run_id is not None
    except NotTracked as error:
        log.warning("MLflow did not take %s (%s); try later: refed report %s", page, error, shlex.quote(str(folder)))
        return False
