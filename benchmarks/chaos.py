"""Kills, stops, full disks and a hostile endpoint at random moments over every kind of work: which promises break?

`make chaos`, or `python -m benchmarks.chaos`: rounds for CHAOS_MINUTES (10), or CHAOS_ROUNDS of them, the first with
CHAOS_SEED (drawn and printed if unset), the next with the number after it. So one round is repeated by its own seed and
`CHAOS_ROUNDS=1`; what it draws is the same, and moments are as near as a machine's clock allows. With CHAOS_TELL=1
each start is told; with CHAOS_KIND all rounds are of that kind (`benchmarks.chaos_jobs.KINDS`).

After each start: no committed row is lost; no request is sent after its answer was recorded, and each that the server
had is in the books; the books are the server's bill within what is reserved; no cap is passed; the key is in no file
and no line; the exit code is a documented one with a line and no traceback; the rows are distinct and right; the ledger
is whole. A job that is done makes no request when it is started again. What is exported and shared is the old file or
folder, whole, or the new one. Exits with 1 where a promise is broken; that round's folder is kept.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

from benchmarks.chaos_disk import with_own_mounts
from benchmarks.chaos_jobs import KINDS
from benchmarks.chaos_rounds import Round, Tally


def kind_of(seed: int) -> str:
    """The kind of work of the round of `seed`; a cluster where Ray is here."""
    kinds = [kind for kind in KINDS if kind != "cluster" or find_spec("ray")]
    return os.environ.get("CHAOS_KIND") or random.Random(f"kind {seed}").choice(kinds)


def main() -> None:
    with_own_mounts("benchmarks.chaos")
    minutes = float(os.environ.get("CHAOS_MINUTES") or 10)
    most = int(os.environ.get("CHAOS_ROUNDS") or 10**9)
    seed = int(os.environ.get("CHAOS_SEED") or random.SystemRandom().randrange(10**6))
    print(f"CHAOS_SEED={seed}", flush=True)
    ends = time.monotonic() + 60 * minutes
    folder, tally, kinds, bad = Path(tempfile.mkdtemp(prefix="chaos-")), Tally(), Counter[str](), 0
    rounds = 0
    while rounds < most and (time.monotonic() < ends or not rounds):
        one = Round(seed + rounds, kind_of(seed + rounds), folder / str(seed + rounds), tally,
                    aloud=bool(os.environ.get("CHAOS_TELL")))  # fmt: skip
        one.run()
        kinds[one.kind] += 1
        bad += len(one.broken)
        if one.broken:
            told = [f"CHAOS_SEED={one.seed} CHAOS_ROUNDS=1, {one.kept}", *one.told]
            print("\n  ".join(told + [f"broken: {promise}" for promise in one.broken]), flush=True)
        rounds += 1
    print("rounds  done  starts  kills  other events  requests  checked  broken")
    others = tally.events - tally.kills
    print(f"{rounds:6}{tally.done:6}{tally.starts:8}{tally.kills:7}{others:14}{tally.requests:10}{tally.checked:9}"
          f"{bad:8}")  # fmt: skip
    print(", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items())))
    if bad:
        sys.exit(f"{bad} promises were broken; the folders of those rounds are in {folder}")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
