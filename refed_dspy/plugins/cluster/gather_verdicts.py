"""Takes what a judge told the workers over into the filtering's own ledger, which answers its questions from then on,
and removes the shards."""

from __future__ import annotations

import shutil
from pathlib import Path

from refed_dspy.ledger.connection import FILE, JUDGING
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.statements import noted
from refed_dspy.ledger.summary import LIVE

_TAKEN = "gathered"
"""The shards that were taken over and are not removed yet."""
_CALLS = """
INSERT INTO calls SELECT id + ?, key, stage, item, model, endpoint, CASE outcome WHEN 'sent' THEN 'lost' ELSE outcome
  END, seconds, prompt_tokens, cached_tokens, completion_tokens, reserved, cost, created, reasoning_tokens
FROM shard.calls ORDER BY id
"""
# In this order: an answer that is there already stays, with what its model thought; whoever asked again shares it.
_ROWS = (
    "INSERT INTO reasoning SELECT key, text, sum FROM shard.reasoning WHERE key NOT IN (SELECT key FROM answers)",
    "INSERT OR IGNORE INTO shared SELECT item, stage, key FROM shard.shared",
    "INSERT OR IGNORE INTO shared SELECT own.item, own.stage, key FROM shard.answers own JOIN answers kept USING (key)"
    " WHERE (kept.item, kept.stage) <> (own.item, own.stage)",
    "INSERT OR IGNORE INTO answers SELECT * FROM shard.answers",
    "INSERT OR REPLACE INTO failures SELECT * FROM shard.failures",
    "DELETE FROM failures WHERE key IN (SELECT key FROM shard.answers)",
    "DELETE FROM failures WHERE key IN (SELECT key FROM shard.failures) AND key IN (SELECT key FROM answers)",
)


def shards_in(folder: Path) -> list[Path]:
    """The shards of the filtering in `folder`, of a start under way or one that was killed."""
    return sorted((folder / JUDGING).glob("*/shards/*"))


def gather_verdicts(folder: Path) -> None:
    """Take over the calls and answers of all shards of the filtering in `folder`, and remove the shards.

    Nobody works on any of them, nor on the filtering. Killed at any moment, the next call goes on: what a shard has is
    taken over in one transaction, which also says so.

    Raises:
        RunDirError: somebody works on a shard or the filtering; a ledger is damaged.
        RunStopped: it could not be written.
    """
    with Ledger.create(folder) as ledger:
        ledger.db.execute("PRAGMA synchronous=FULL")  # on the disk before a shard is removed
        names = {shard.relative_to(folder).as_posix(): shard for shard in shards_in(folder)}
        taken = [name for name in ledger.meta(_TAKEN) or () if name in names]
        for name in names.keys() - taken:
            if (names[name] / FILE).is_file():
                taken.append(name)
                with Ledger.create(names[name]) as shard:
                    _take_over(ledger, shard, taken)
        shutil.rmtree(folder / JUDGING, ignore_errors=True)  # of what stays it is known that it was taken over
        (folder / LIVE).unlink(missing_ok=True)


def _take_over(ledger: Ledger, shard: Ledger, taken: list[str]) -> None:
    """Take over what `shard` has; from then on `taken` are."""
    ledger.db.execute("ATTACH ? AS shard", (str(shard.path),))
    try:
        ledger.commit(
            [
                (_CALLS, (ledger.last_call(),)),
                *((statement, ()) for statement in _ROWS),
                noted(_TAKEN, taken),
            ]
        )
    finally:
        ledger.db.execute("DETACH shard")
