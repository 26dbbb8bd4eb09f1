"""When a model that fails ends the work: one rule for every model, in whichever role and kind of work.

Its first 20 calls fail, or later on a share of the last 50 of a stage: then it is not the rows that are at fault. And
where there are fewer calls, a model that failed on each of them.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from refed_dspy.errors import (
    NoConnection,
    RefedError,
    RefusedAnswer,
    RowError,
    TeacherError,
    TooLong,
    TooManyFailed,
    UnfitRequest,
)

LEAST_CALLS = 20
RECENT = 50
"""A stage's failure share is taken over its last 50 calls, once there are 20: a teacher may also fail later on."""
DEFAULT_SHARE = 0.5
"""Of a work's last calls, where its settings name no `max_failure_share`."""
ROWS_OWN = (RefusedAnswer, TooLong)
"""Failures that say something of a row's text, and nothing of a judge, once it has answered others."""
JUDGING = {"judge", "reflection"}
"""Roles of models that write about texts, each of which may be odd."""


@dataclass(frozen=True)
class CallPolicy:
    """How a model is asked in one work: the `seed` of its calls, and the share of failures that ends the work.

    `max_failure_share`: None where it is no setting of the work; then it is DEFAULT_SHARE. `uncounted`: the kinds of
    failures that do not count once a stage has an answer, besides ROWS_OWN for models that judge. `depth`: stage → how
    deep in the program it is. Where the budget runs short the deepest stage goes first, since it finishes samples; a
    stage that is not named goes before all that are.
    """

    seed: int = 0
    max_failure_share: float | None = None
    uncounted: tuple[type[RowError], ...] = ()
    depth: Mapping[str, int] = field(default_factory=dict)


class Failures:
    """The failures of one model's calls in this start, by stage. `role` is what the model is, for messages too;
    `ever_answered` says whether any start had an answer in these stages."""

    def __init__(self, role: str, policy: CallPolicy, ever_answered: Callable[[Iterable[str]], bool]) -> None:
        self.role, self._share, self._ever_answered = role, policy.max_failure_share, ever_answered
        self._uncounted = (*policy.uncounted, *(ROWS_OWN if role in JUDGING else ()))
        self._recent: defaultdict[str, deque[bool]] = defaultdict(lambda: deque(maxlen=RECENT))
        self._answered: set[str] = set()
        self._last: RowError | None = None
        self._failed = 0
        self.paid = False
        """Whether any call was answered in this process, usable or not: then something was paid for."""

    def answered(self, stage: str) -> None:
        """A call of `stage` had a usable answer."""
        self._answered.add(stage)
        self._recent[stage].append(True)

    def failed(self, stage: str, error: RowError) -> None:
        """A call of `stage` failed. Where too many did, raises TeacherError if the endpoint refused all so far, else
        TooManyFailed."""
        self._last, self._failed = error, self._failed + 1
        recent = self._recent[stage]
        if isinstance(error, self._uncounted) and (stage in self._answered or self._ever_answered([stage])):
            return
        recent.append(False)
        if not self._answered and self._failed >= LEAST_CALLS:
            raise self._error(f"{self.role}: the first {self._failed} calls failed", "") from error
        failed, share = recent.count(False), self._share
        if len(recent) < LEAST_CALLS or failed / len(recent) < (share or DEFAULT_SHARE):
            return
        remedy = f", or raise max_failure_share ({share:g})" if share is not None and share < 1 and self.paid else ""
        raise self._error(f"{stage} failed in {failed} of its last {len(recent)} calls", remedy) from error

    @property
    def unanswered(self) -> int:
        """How many calls failed, if all did and no start had an answer in their stages; else 0."""
        return 0 if self._answered or self._ever_answered(self._recent) else self._failed

    def check_useful(self) -> None:
        """Raises TeacherError or TooManyFailed where every call failed, and no start had an answer in their stages."""
        if self.unanswered:
            calls = f"all {self._failed} calls" if self._failed > 1 else "the only call"
            raise self._error(f"{self.role}: {calls} failed", "")

    def not_reached(self, error: NoConnection) -> TeacherError:
        """An endpoint that never answered is not one row's bad luck."""
        prefix = "" if self.role == "teacher" else f"{self.role}: "
        return TeacherError(f"{prefix}{error.reason} — check api_base and that the server is running")

    def _error(self, what: str, remedy: str) -> RefedError:
        assert self._last is not None
        text = f"{what}, the last one {self._last.kind}: {self._last.reason} — check the {self.role}{remedy}"
        refused = isinstance(self._last, UnfitRequest | NoConnection) and not self.paid
        return TeacherError(text) if refused else TooManyFailed(text)
