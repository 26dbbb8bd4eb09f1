"""Make the report: read the folder of a run or of other work, write its page."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from os import PathLike
from pathlib import Path

from refed_dspy.config.keywords import checked
from refed_dspy.errors import ExportError, RunDirError, briefly, one_line
from refed_dspy.files import check_output, path_of, whole_file
from refed_dspy.ledger.connection import FILE
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.states import FUNNEL, named_work
from refed_dspy.plugins.share.report.of_comparison import comparison_page
from refed_dspy.plugins.share.report.of_compile import compile_page
from refed_dspy.plugins.share.report.of_filtering import filtering_page
from refed_dspy.plugins.share.report.of_run import DrawMap, best_map, run_page
from refed_dspy.plugins.share.report.page import Page, render
from refed_dspy.plugins.share.report.rows import LISTED
from refed_dspy.tracking.background import wanted
from refed_dspy.tracking.track import log_page

NAME = "report.html"


@briefly
@checked
def report(
    run_dir: str | PathLike[str],
    out: str | Path | None = None,
    *,
    force: bool = False,
    track: bool | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Path:
    """Write the page that shows the run in `run_dir`, finished or not, and return its path.

    `out`: the file; unset, `report.html` in the run's folder, which is overwritten: it can always be made again from
    the run. If the run is logged in MLflow, the page is logged there too, unless `track` is False. `say` is called
    with a line about each slow step.

    Raises:
        RunDirError: no run there, or nothing in it yet.
        ExportError: `out` exists and `force` is not set, it is another file of the run, or it cannot be written.
    """
    folder = path_of(run_dir, "run_dir")
    path = folder / NAME if out is None else path_of(out, "out")
    check_output(path)
    if out is not None and path.exists() and not force:
        raise ExportError(f"{path}: already exists; choose another file or overwrite it with force=True")
    if path.resolve().parent == folder.resolve() and path.name != NAME and path.exists():
        raise ExportError(f"{path}: is part of the run; choose another file")
    if out is not None and not path.parent.is_dir():  # checked before seconds of work
        raise ExportError(f"{path}: cannot be written: no folder {path.parent}; make it first")
    content = render(read_page(folder, best_map(say)), version("refed-dspy"))
    try:
        with whole_file(path) as file:
            file.write(content)
    except OSError as error:
        raise ExportError(f"{one_line(path, 200)}: cannot be written: {one_line(error.strerror or error)}") from None
    if wanted(track):
        log_page(folder, path)
    return path


def read_page(folder: Path, draw: DrawMap, most: int = LISTED) -> Page:
    """The contents of the page of the work in `folder`; of a run at most `most` rows are listed.

    Raises RunDirError: none there, or nothing in it yet."""
    if (folder / FUNNEL).is_file() and not (folder / FILE).is_file():  # no judge was asked
        return filtering_page(folder, None)
    with Ledger.read(folder) as ledger:
        if (holds := ledger.holds() or "run") not in {"run", *_PAGES}:
            raise RunDirError(f"{folder}: contains {named_work(holds)}; a report shows {_KINDS}")
        if not ledger.has_answers():
            raise RunDirError(f"{folder}: no answers yet, so nothing to show; run or resume it first")
        ledger.db.execute("BEGIN")  # a snapshot: the work may go on meanwhile
        if holds == "run":
            return run_page(folder, ledger, draw, most)
        return _PAGES[holds](folder, ledger)


_PAGES = {"comparison": comparison_page, "filtering": filtering_page, "compile": compile_page}
_KINDS = "a run, a comparison, a filtering or a compile"
