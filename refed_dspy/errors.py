"""Every error this package raises, in one tree.

    RefedError                  exit code 1
    ├── InputError              exit code 2: the caller's input cannot be used; this start paid for no answer
    │   ├── ConfigError         a setting, a flag, an environment variable, a program file
    │   │   ├── ModelError      a model that cannot be used with its settings
    │   │   └── PluginMissing   what was asked for is in a plug-in that is not installed
    │   ├── ReferencesError     the references: file, row, shape
    │   ├── RunDirError         the run's folder: of another run, in use, unreadable
    │   ├── ExportError         the file to write exists, or cannot be written
    │   └── TeacherRefused      the teacher cannot serve this run at all, raised before its first answer
    ├── RowError                one row fails and the run continues
    │   ├── MalformedAnswer     the answer does not fit the signature
    │   ├── CutAnswer           the answer ended at the token limit
    │   ├── RefusedAnswer       a content filter, or the model itself, declined
    │   ├── UnfitRequest        the endpoint refused this one request
    │   │   └── TooLong         it does not fit the context window
    │   ├── CodeFailed          an error in a program, module or filter of the caller's own
    │   └── NoAnswer            time-outs, 429s, 5xx, dropped connections, after the last retry
    │       └── NoConnection    the endpoint was not even reached
    ├── TeacherError            the run stops: the key, the model, the account or the endpoint
    └── RunStopped              the run ended before its size was reached; it can be resumed
        ├── EndpointBusy        nothing but refusals for minutes, or no answers at all
        ├── TooManyFailed       a model failed on its first calls, or on too large a share of a stage's last ones
        ├── LedgerLost          its ledger was removed or replaced while it was written
        ├── WrongCode           a filter of one's own returned no decision
        ├── NothingKept         the filters drop every row, or the judge never decides
        └── CapReached          at max_cost, max_calls or max_minutes; `synthesize` then returns, and says so

Each message is one line and ends with what to do about it. A note (`add_note`) may show more, for instance a
row.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from shlex import quote
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Wording(str):
    """A message for who calls from Python; `command`: the same for who works at the command line. Joined with `+`,
    as an error's message and in `one_line` it stays both; in an f-string, and a slice, only Python's is left."""

    command: str

    def __new__(cls, python: str, command: str) -> Wording:
        made = super().__new__(cls, python)
        made.command = command
        return made

    def __reduce__(self) -> tuple[type[Wording], tuple[str, str]]:
        return type(self), (self[:], self.command)

    def __str__(self) -> str:
        return self  # so that str(error) has both

    def __add__(self, more: str) -> Wording:
        return Wording(f"{self}{more}", self.command + as_options(more))

    def __radd__(self, before: str) -> Wording:
        return Wording(f"{before}{self}", before + self.command)


def as_options(text: object) -> str:
    """A message, or an error's, as the command line words it."""
    return said.command if isinstance(said := str(text), Wording) else said


def setting(name: str, value: object = "…") -> Wording:
    """`force=True` or `--force`, `max_calls=9` or `--max-calls 9`: `value` is written as it is."""
    option = "--" + name.replace("_", "-")
    return Wording(f"{name}={value}", option if value is True else f"{option} {value}")


def setting_text(name: str, text: str) -> Wording:
    """`setting` with a text for its value: `reuse='a b'` or `--reuse 'a b'`."""
    return Wording(f"{name}={text!r}", setting(name, quote(text)).command)


CAPS = ("max_cost", "max_calls", "max_minutes")
"""The settings that end work early."""
SAME_CALL, FORCE, OUT = Wording("the same call", "the same command"), setting("force", True), setting("out")


def one_line(text: object, limit: int = 300) -> str:
    """`text` without line breaks or control characters, at most `limit` characters: safe to print."""
    text = str(text)
    if isinstance(text, Wording):
        return Wording(one_line(text[:], limit), one_line(text.command, limit))
    flat = " ".join(text.split(None, limit + 1))[: limit + 1]  # a text of megabytes is not gone through
    clean = "".join(ch if ch.isprintable() else "?" for ch in flat)
    return clean if len(clean) <= limit else clean[: limit - 1] + "…"


class Reason(str):
    """Why a row has no answer, or none that is used, in words: "kind: detail". `kind` is the word that counts it."""

    kind: str
    detail: str

    def __new__(cls, kind: str, detail: str = "") -> Reason:
        made = super().__new__(cls, f"{kind}: {detail}" if detail else kind)
        made.kind, made.detail = kind, detail
        return made


NO_REASON = Reason("")


class RefedError(Exception):
    """Base of all errors raised by this package."""

    exit_code = 1


class InputError(RefedError):
    """The caller's input cannot be used. This start paid for no answer."""

    exit_code = 2


class ConfigError(InputError):
    """A setting is missing, unknown or out of range. Of one that was validated, `where` says which, and `reason` the
    rest."""

    where = reason = ""


class PluginMissing(ConfigError):
    """What was asked for is in a plug-in that is not installed."""


class CapTooSmall(ConfigError):
    """A cap is below the worst case of a single call."""


class ModelError(ConfigError):
    """A model cannot be used with its settings. `role` is what it is for, or the setting that names it."""

    def __init__(self, reason: str, role: str = "teacher") -> None:
        super().__init__(f"{role}: {reason}")
        self.reason, self.role = reason, role

    def __reduce__(self) -> tuple[type[ModelError], tuple[str, str]]:
        return type(self), (self.reason, self.role)


class ReferencesError(InputError):
    """The references cannot be read, or none of them is usable."""


class RunDirError(InputError):
    """The run's folder belongs to another run, is in use, or cannot be read."""


class FolderInUse(RunDirError):
    """Somebody is at work in the folder."""


class ExportError(InputError):
    """The exported file exists already or cannot be written."""


class RowError(RefedError):
    """One call's row failed; the run records it and continues.

    `kind` is the word stored in the ledger and counted in reports.
    """

    kind = "failed"
    final = True
    """False where asking again on a later run may well succeed."""
    recorded = False
    """Whether a call ended by it, so that it is among the ledger's failures. One that a program raises is not yet."""

    def __init__(self, stage: str, item: str, reason: str) -> None:
        self.stage, self.item, self.reason = stage, item, one_line(reason)
        super().__init__(f"{stage} of {item}: {self.reason}")

    @property
    def told(self) -> Reason:
        """For what is noted of the row."""
        return Reason(self.kind, self.reason)


class MalformedAnswer(RowError):
    """The answer does not fit the signature."""

    kind = "malformed"


class CutAnswer(RowError):
    """The answer ended at the token limit."""

    kind = "cut"


class RefusedAnswer(RowError):
    """A content filter, or the model itself, declined."""

    kind = "refused"


class UnfitRequest(RowError):
    """The endpoint refused this one request. It may have been the endpoint's fault: some answer 400 to everything for a
    while, and to a wrong key. A refusal costs nothing, so the next start asks again."""

    kind = "unfit"
    final = False


class TooLong(UnfitRequest):
    """The request does not fit the model's context window."""

    kind = "too long"
    final = True


class NoAnswer(RowError):
    """No answer after the last retry."""

    kind = "no answer"
    final = False


class NoConnection(NoAnswer):
    """The endpoint was not even reached."""

    kind = "no connection"


class CodeFailed(RowError):
    """The caller's own code raised an error on the row. What the row's calls answered is kept, so the next start tries
    the code again at no cost."""

    kind = "own code"
    final = False


class CheckFailed(Exception):
    """A check of the user's, run as a command, gave no decision on a row. Its message is one line for a person."""


PASSING = frozenset(kind.kind for kind in (UnfitRequest, NoAnswer, NoConnection, CodeFailed))
"""The kinds of failures that are not final: another start asks again."""


class TeacherError(RefedError):
    """The teacher cannot continue: a wrong key, model name, account or endpoint. Stops the run."""


class TeacherRefused(TeacherError, InputError):
    """The same before this start's first answer, so it counts as bad input. Nothing was paid for, unless the endpoint
    bills calls that were open and got no answer: those are charged at their worst case."""

    exit_code = 2


class RunStopped(RefedError):
    """The run ended before its size was reached. Finished samples are in the ledger."""


class EndpointBusy(RunStopped):
    """The endpoint's rate limit has refused every request for minutes, or it answers nothing. Another teacher of a pool
    may answer."""


class TooManyFailed(RunStopped):
    """A model failed on its first calls, or on too large a share of a stage's last ones."""


class WrongCode(RunStopped):
    """The caller's own code must be repaired. Repaired, it belongs to another run."""


class LedgerLost(RunStopped):
    """The ledger was removed or replaced while it was written: nothing more may be paid for."""


class NothingKept(RunStopped):
    """Filters drop every row, or a judge never decides: continuing would cost money for nothing. `why`, and what to do
    about it. `run_dir`: the run's folder, with the samples that were kept before; None where it is other work."""

    def __init__(self, why: str, remedy: str = "", run_dir: Path | None = None) -> None:
        super().__init__(f"{why}; {remedy}" if remedy else why)
        self.why, self.run_dir = why, run_dir


class CapReached(RunStopped):
    """A further call could pass `cap`, and no call in flight can free any of it. `synthesize` ends the run cleanly and
    returns. `worst_picodollars`: the most that the refused call could have cost. `cap` is empty where a compile that is
    ending for another reason refused the call."""

    def __init__(self, cap: str, worst: int = 0, reason: str = "") -> None:
        super().__init__(reason or f"{cap} is reached")
        self.cap, self.worst_picodollars = cap, worst

    def __reduce__(self) -> tuple[type[CapReached], tuple[str, int, str]]:
        return type(self), (self.cap, self.worst_picodollars, str(self))


def briefly(call: Callable[P, T]) -> Callable[P, T]:
    """`call`, whose errors of this package show the caller's line and the message alone: the message says all there is
    to know, and the frames between are this package's own. So does a KeyboardInterrupt with a message."""

    @wraps(call)
    def called(*arguments: P.args, **keywords: P.kwargs) -> T:
        try:
            return call(*arguments, **keywords)
        except RefedError as error:
            error.__context__ = None  # an exception group in it would make IPython print instead of raise
            raise error.with_traceback(None) from None
        except KeyboardInterrupt as interrupt:
            raise interrupt.with_traceback(None if interrupt.args else interrupt.__traceback__) from None

    return called
