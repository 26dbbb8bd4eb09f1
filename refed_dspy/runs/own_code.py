"""A caller's own code in a run: its program, the modules in a stage's place, its filters and its adapter.

Whatever they raise is the failure of the row at hand, as an answer's that does not fit: it is recorded, counted by
`max_failure_share`, and tried again by the next start. An error where nothing is the caller's is a bug, and raised.
"""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import dspy

from refed_dspy.config.keys import without_keys
from refed_dspy.errors import CapReached, CheckFailed, CodeFailed, RefedError, RowError, TooManyFailed, one_line
from refed_dspy.filters.screening import FilterFailed
from refed_dspy.jobs.session import Session
from refed_dspy.ledger.statements import Key, failed
from refed_dspy.programs.own_code import code_failed, has_own_code, is_own, place_of
from refed_dspy.programs.question import UnnamedStage
from refed_dspy.records import digest
from refed_dspy.teachers.failures import DEFAULT_SHARE, LEAST_CALLS, RECENT

log = logging.getLogger("refed_dspy")


class OwnCode:
    """The failures of the caller's code in one start of a run."""

    def __init__(self, session: Session, program: Any, names: Mapping[str, str]) -> None:
        self._session, self._names = session, names
        self._share = session.start.work.policy.max_failure_share
        self._is_own = has_own_code(program) or is_own(dspy.settings.adapter)
        self._recent: defaultdict[str, deque[bool]] = defaultdict(lambda: deque(maxlen=RECENT))
        """Kind of unit → which of the last ones failed by the caller's code."""
        self._last: CodeFailed | RowError | None = None
        self._told = set[str]()

    @contextmanager
    def unit(self, kind: str, item: str) -> Iterator[UnnamedStage]:
        """A unit of the run for `item`. What its code calls is asked within the question that this gives.

        Raises CodeFailed for an error of the caller's code, which is in the ledger by then, as is a RowError of its
        own; TooManyFailed where there were too many.
        """
        question, key = UnnamedStage(item, self._names), digest(["own code", kind, item])
        try:
            yield question
        except RefedError as error:
            if isinstance(error, RowError) and self._is_own and not error.recorded:
                self._note(kind, error, key)
            raise
        except FilterFailed as failed:
            cause = self._to_record(_cause_of(failed))
            raise self._failed(kind, f"filters: {failed}", item, cause, key) from failed
        except Exception as raised:
            if not self._is_own:
                raise
            cause = self._to_record(raised)
            raise self._failed(kind, question.stage, item, cause, key) from raised
        self.worked(kind)
        self._session.post(self._session.start.recorder.recovered(key))

    def _to_record(self, raised: Exception) -> Exception:
        """The error that a unit failed with; of a task group's, the first. Raises what is no failure of its own: an
        error of this package, those that end the run first, and whatever ended the run meanwhile."""
        errors = list(_leaves(raised))
        if refed := [each for each in errors if isinstance(each, RefedError)]:
            raise min(refed, key=lambda each: isinstance(each, RowError))
        self._check_going_on(errors[0])
        return errors[0]

    def worked(self, kind: str, times: int = 1) -> None:
        """So many units went well."""
        self._recent[kind].extend([False] * times)

    def filter_failed(self, error: FilterFailed, item: str, text: str) -> CodeFailed:
        """The failure of an instruction, by this digest of its `text`, on which a filter raised an error; it is
        recorded and counted. Raises TooManyFailed."""
        key = digest(["own code", str(error), text])
        return self._failed("filter", f"filters: {error}", item, _cause_of(error), key)

    def _failed(self, kind: str, stage: str, item: str, error: Exception, key: str) -> CodeFailed:
        failure = code_failed(stage, item, error)
        self._tell(error)
        self._note(kind, failure, key)
        return failure

    def _note(self, kind: str, error: RowError, key: str) -> None:
        """Record and count a failure of the caller's code. Raises TooManyFailed."""
        recorder, progress = self._session.start.recorder, self._session.progress
        if not error.final:
            recorder.passing.add(key)
        self._session.post(failed(Key(error.stage, error.item, 0, key), error.kind, error.reason, error.final, []))
        progress.failed[error.kind] += 1
        self._last, recent = error, self._recent[kind]
        recent.append(True)
        count = recent.count(True)
        if len(recent) >= LEAST_CALLS and count / len(recent) >= (self._share or DEFAULT_SHARE):
            recorder.ended = self._too_many(f"{count} of the last {len(recent)} rows")
            raise recorder.ended

    def check_useful(self) -> None:
        """Raises TooManyFailed where the caller's code failed on every row, or every filter on every instruction."""
        if any(recent and all(recent) for recent in self._recent.values()):
            raise self._too_many("every row")

    def _tell(self, error: Exception) -> None:
        """Say where an error came from: once for each place, and each time with its traceback for who asks for it."""
        log.debug("an error of your own code:\n%s", without_keys("".join(traceback.format_exception(error))))
        of_code = f"{type(error).__name__} at {place_of(error, whole=True)}"
        place = "a check" if isinstance(error, CheckFailed) else of_code
        if place not in self._told:
            self._told.add(place)
            log.warning("%s: %s; the row counts as failed", place, one_line(without_keys(str(error)), 200))

    def _too_many(self, what: str) -> TooManyFailed:
        assert self._last is not None
        remedy = (
            f", or raise max_failure_share ({self._share:g})" if self._share is not None and self._share < 1 else ""
        )
        last = f"the last one in {self._last.stage} of {self._last.item}: {self._last.reason}"
        return TooManyFailed(f"your own code failed on {what}, {last} — repair it{remedy}")

    def _check_going_on(self, error: Exception) -> None:
        """Raises what ends the run, if the code's error only follows from that."""
        recorder = self._session.start.recorder
        if recorder.ended is not None or recorder.budget.reached is not None:
            raise (recorder.ended or recorder.budget.reached or error) from None
        if recorder.out_of_time:
            raise CapReached("max_minutes") from None
        if recorder.stopping:
            raise asyncio.CancelledError from error


def _cause_of(error: FilterFailed) -> Exception:
    assert isinstance(error.__cause__, Exception)
    return error.__cause__


def _leaves(error: Exception) -> Iterator[Exception]:
    """The errors in a task group's of the caller's, or the one that there is."""
    for each in error.exceptions if isinstance(error, ExceptionGroup) else ():
        yield from _leaves(each)
    if not isinstance(error, ExceptionGroup):
        yield error
