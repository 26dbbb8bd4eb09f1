"""What a folder's ledger and the server's log say of the same work, and the promises that both must keep."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

from benchmarks.chaos_weather import PRICE
from benchmarks.kills import committed
from refed_dspy.errors import PASSING
from refed_dspy.records import PICO

BATCH_SHARE = 0.5
ROUNDING = 1_000  # picodollars
PROMISES = 7
"""How many `Moment.broken` looks at, besides caps."""
SENT_AGAIN = """SELECT count(*) FROM calls AS late JOIN calls AS good USING (key)
WHERE good.outcome = 'ok' AND late.id > good.id AND late.created > good.created + good.seconds"""


@dataclass(frozen=True)
class Books:
    """A ledger's counts, or those of a run's shards. Money in picodollars; `known`: what calls that reported their
    tokens cost. `unanswered`: questions that failed for now. `whole`: "ok", or what SQLite says of the damage."""

    rows: frozenset[tuple[str, str]] = frozenset()
    calls: int = 0
    answers: int = 0
    charged: int = 0
    known: int = 0
    sent_again: int = 0
    twice: int = 0
    lost: int = 0
    whole: str = "ok"
    unanswered: int = 0

    @classmethod
    def of(cls, folder: Path) -> Books:
        """Those of the shards where the run in `folder` has any: they are up to date at any moment."""
        shards = sorted((folder / "shards").glob("*"))
        return reduce(Books.__add__, map(cls.of_one, shards)) if shards else cls.of_one(folder)

    @classmethod
    def of_one(cls, folder: Path) -> Books:
        """Those of the ledger in `folder` itself."""
        path = folder / "ledger.sqlite"
        if not path.exists():
            return cls()
        with closing(sqlite3.connect(path, timeout=20)) as db:
            if not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'batched'").fetchone():
                return cls()  # killed before its tables were there

            def count(query: str) -> int:
                return int(db.execute(query).fetchone()[0])

            return cls(
                frozenset((kind, f"{folder.name} {text}") for kind, text in committed(folder)),
                count("SELECT count(*) FROM calls"),
                count("SELECT count(*) FROM answers"),
                count("SELECT coalesce(sum(cost), 0) FROM calls"),
                count("SELECT coalesce(sum(cost), 0) FROM calls WHERE prompt_tokens IS NOT NULL"),
                count(SENT_AGAIN),
                count("SELECT count(*) FROM (SELECT 1 FROM calls WHERE outcome='ok' GROUP BY key HAVING count(*) > 1)"),
                count("SELECT count(*) FROM calls WHERE outcome = 'lost'"),
                str(db.execute("PRAGMA integrity_check").fetchone()[0]),
                sum(kind in PASSING for (kind,) in db.execute("SELECT kind FROM failures")),
            )

    def __add__(self, other: Books) -> Books:
        return Books(
            self.rows | other.rows,
            self.calls + other.calls,
            self.answers + other.answers,
            self.charged + other.charged,
            self.known + other.known,
            self.sent_again + other.sent_again,
            self.twice + other.twice,
            self.lost + other.lost,
            other.whole if self.whole == "ok" else self.whole,
            self.unanswered + other.unanswered,
        )


def bill(stats: dict[str, Any]) -> int:
    """Picodollars that a provider would charge for all its answers, whether or not anybody received them."""
    tokens: dict[str, float] = {
        "prompt": stats["billed_prompt_tokens"] + BATCH_SHARE * stats["batch_billed_prompt_tokens"],
        "completion": stats["billed_completion_tokens"] + BATCH_SHARE * stats["batch_billed_completion_tokens"],
    }
    return round(sum(float(count) * PRICE[kind] * 1e6 for kind, count in tokens.items()))


@dataclass(frozen=True)
class Moment:
    """The books and the server's log at one moment when nobody works in the folder."""

    books: Books
    stats: dict[str, Any]

    def broken(self, before: Books, caps: dict[str, Any], in_flight: int) -> Iterator[str]:
        """Each promise about rows and money that is not kept. `before`: the books as they were last seen. `in_flight`:
        the most calls that can have been in flight when starts were killed."""
        books, billed = self.books, bill(self.stats)
        requests = self.stats["requests"] + self.stats["batch_requests"]
        if books.whole != "ok":
            yield f"the ledger is damaged: {books.whole}"
        if gone := before.rows - books.rows:
            yield f"{len(gone)} committed rows are lost, {min(gone)} among them"
        if books.sent_again or books.twice:
            yield f"{books.sent_again} calls were sent after their answer had come, {books.twice} paid twice"
        if requests > books.calls:
            yield f"{requests} requests at the server, {books.calls} calls in the ledger"
        if books.lost > in_flight:
            yield f"{books.lost} calls are lost, and at most {in_flight} were in flight at the kills"
        if billed > books.charged + ROUNDING:
            yield f"billed {billed / PICO:g} dollars, in the books {books.charged / PICO:g}"
        if books.known > billed + ROUNDING:
            yield f"{books.known / PICO:g} dollars in the books for known tokens, billed {billed / PICO:g}"
        cap, calls = caps.get("max_cost"), caps.get("max_calls")
        if cap is not None and max(books.charged, billed) > cap * PICO + ROUNDING:
            yield f"max_cost {cap} is passed: {books.charged / PICO:g} in the books, {billed / PICO:g} billed"
        if calls is not None and max(books.calls, requests) > calls:
            yield f"max_calls {calls} is passed: {books.calls} in the books, {requests} at the server"
