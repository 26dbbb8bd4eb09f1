"""Every error this package raises, in one tree.

    RefedError                  exit code 1
    ├── InputError              exit code 2: what the caller gave cannot be used; no call was paid for
    │   ├── ConfigError         a setting, a flag, an environment variable, a program file
    │   ├── ReferencesError     the references: file, row, shape
    │   ├── RunDirError         the run's folder: of another run, in use, unreadable
    │   ├── ExportError         the file to write exists, or cannot be written
    │   └── TeacherRefused      the teacher cannot serve this run at all, told before its first answer
    ├── RowError                one row fails and the run goes on
    │   ├── MalformedAnswer     the answer does not fit the signature
    │   ├── CutAnswer           the answer ended at the token limit
    │   ├── RefusedAnswer       a content filter, or the model itself, declined
    │   ├── UnfitRequest        the endpoint refused this one request (too long, say)
    │   └── NoAnswer            time-outs, 429s, 5xx, dropped connections, after the last retry
    │       └── NoConnection    the endpoint was not even reached
    ├── TeacherError            the run stops: the key, the model, the account or the endpoint
    └── RunStopped              the run ended before its size was reached; it can be resumed
        ├── EndpointBusy        an endpoint refuses everything for its rate limit, for minutes
        ├── NothingKept         the filters, or the judge, give no hope that a row will ever be kept
        └── CapReached          at max_cost, max_calls or max_minutes; `synthesize` returns then, and says so

Each message is one line and ends with what to do about it.
"""

from __future__ import annotations


def one_line(text: object, limit: int = 300) -> str:
    """`text` without line breaks or control characters, at most `limit` characters: safe to print."""
    flat = " ".join(str(text).split())
    clean = "".join(ch if ch.isprintable() else "?" for ch in flat)
    return clean if len(clean) <= limit else clean[: limit - 1] + "…"


class RefedError(Exception):
    """Base of all errors raised by this package."""

    exit_code = 1


class InputError(RefedError):
    """Something the caller gave cannot be used. Nothing was sent or paid for."""

    exit_code = 2


class ConfigError(InputError):
    """A setting is missing, unknown or out of range."""


class ReferencesError(InputError):
    """The references cannot be read, or none of them is usable."""


class RunDirError(InputError):
    """The run's folder belongs to another run, is in use, or cannot be read."""


class ExportError(InputError):
    """The exported file exists already or cannot be written."""


class RowError(RefedError):
    """One call's row failed; the run records it and goes on.

    `kind` is the word stored in the ledger and counted in reports.
    """

    kind = "failed"
    final = True
    """False where asking again on a later run may well succeed."""

    def __init__(self, stage: str, item: str, reason: str) -> None:
        self.stage, self.item, self.reason = stage, item, one_line(reason)
        super().__init__(f"{stage} of {item}: {self.reason}")


class MalformedAnswer(RowError):
    kind = "malformed"


class CutAnswer(RowError):
    kind = "cut"


class RefusedAnswer(RowError):
    kind = "refused"


class UnfitRequest(RowError):
    kind = "unfit"


class NoAnswer(RowError):
    kind = "no answer"
    final = False


class NoConnection(NoAnswer):
    kind = "no connection"


class TeacherError(RefedError):
    """The teacher cannot go on: a key, a model name, an account or an endpoint. Stops the run."""


class TeacherRefused(TeacherError, InputError):
    """The same, found before the first answer: nothing was paid for, so it counts as bad input."""

    exit_code = 2


class RunStopped(RefedError):
    """The run ended before its size was reached. What was made is in the ledger."""


class EndpointBusy(RunStopped):
    """The endpoint has refused everything for its rate limit, for minutes. Another teacher of a pool may answer."""


class NothingKept(RunStopped):
    """Filters drop whatever comes, or a judge never decides: going on would be paid for without end."""


class CapReached(RunStopped):
    """A further call could pass `cap`, and no call in flight could still give anything back. `synthesize` ends the run
    in order and returns. `worst`: picodollars that the call which did not fit could have cost."""

    def __init__(self, cap: str, worst: int = 0, reason: str = "") -> None:
        super().__init__(reason or f"{cap} is reached")
        self.cap, self.worst = cap, worst
