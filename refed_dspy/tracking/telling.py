"""Tell MLflow of a folder afterwards."""

from __future__ import annotations

from pathlib import Path

from refed_dspy.engine.ledger import Ledger
from refed_dspy.errors import RunDirError
from refed_dspy.tracking.compiles import copy_compile
from refed_dspy.tracking.runs import copy_run
from refed_dspy.tracking.store import Store, noted_run


def tell(folder: Path | str) -> str:
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
