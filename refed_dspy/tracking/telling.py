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
    if not (compiled or run):
        raise RunDirError(f"{folder}: nothing was begun here yet")
    store = Store(place)
    store.connect()
    (copy_compile if compiled else copy_run)(store, True)
    return str(noted_run(place))
