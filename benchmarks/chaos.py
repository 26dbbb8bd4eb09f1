"""Kills, stops, full disks and a hostile endpoint at random moments over every kind of work: which promises break?

`make chaos`, or `python -m benchmarks.chaos`: rounds for CHAOS_MINUTES (10), or CHAOS_ROUNDS of them, the first with
CHAOS_SEED (drawn and printed if unset), the next with the number after it. So one round is repeated by its own seed and
`CHAOS_ROUNDS=1`; what it draws is the same, and moments are as near as a machine's clock allows. With CHAOS_TELL=1
each start is told.

After each start: no committed row is lost; no request is sent after its answer was recorded, and each that the server
had is in the books; the books are the server's bill within what is reserved; no cap is passed; the key is in no file
and no line; the exit code is a documented one with a line and no traceback; the rows are distinct and right; the ledger
is whole. A job that is done makes no request when it is started again, and its export can be read. Exits with 1 where
a promise is broken; that round's folder is kept.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from benchmarks import chaos_nodes
from benchmarks.chaos_rounds import Round, Tally

CLUSTERS = 0.1
"""The share of rounds on a cluster, where Ray is here."""


def one_round(seed: int, home: Path, tally: Tally) -> tuple[str, list[str], list[str]]:
    """The kind of work of the round of `seed`, what was drawn and how its starts ended, and what was broken."""
    home.mkdir(parents=True)
    if chaos_nodes.possible() and random.Random(f"cluster {seed}").random() < CLUSTERS:
        return "cluster", [], list(chaos_nodes.broken(seed, home / "work"))
    one = Round(seed, home, tally, aloud=bool(os.environ.get("CHAOS_TELL")))
    one.run()
    return one.job.kind, one.told, one.broken


def main() -> None:
    minutes = float(os.environ.get("CHAOS_MINUTES") or 10)
    most = int(os.environ.get("CHAOS_ROUNDS") or 10**9)
    seed = int(os.environ.get("CHAOS_SEED") or random.SystemRandom().randrange(10**6))
    print(f"CHAOS_SEED={seed}", flush=True)
    ends = time.monotonic() + 60 * minutes
    folder, tally, kinds, bad = Path(tempfile.mkdtemp(prefix="chaos-")), Tally(), Counter[str](), 0
    rounds = 0
    while rounds < most and (time.monotonic() < ends or not rounds):
        home = folder / str(seed + rounds)
        kind, told, broken = one_round(seed + rounds, home, tally)
        kinds[kind] += 1
        bad += len(broken)
        if broken:
            told = [f"CHAOS_SEED={seed + rounds} CHAOS_ROUNDS=1, {home}", *told]
            print("\n  ".join(told + [f"broken: {promise}" for promise in broken]), flush=True)
        else:
            shutil.rmtree(home)
        rounds += 1
    print("rounds  done  starts  kills  other events  requests  checked  broken")
    others = tally.events - tally.kills
    print(f"{rounds:6}{tally.done:6}{tally.starts:8}{tally.kills:7}{others:14}{tally.requests:10}{tally.checked:9}"
          f"{bad:8}")  # fmt: skip
    print(", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items())))
    if bad:
        sys.exit(f"{bad} promises were broken; the folders of those rounds are in {folder}")
    folder.rmdir()


if __name__ == "__main__":
    main()
