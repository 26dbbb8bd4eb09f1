"""Faults planted in what money and rows depend on, one at a time: how many rounds of chaos until each is told?

`python -m benchmarks.chaos_planted [ROUNDS]`; about twenty minutes. Exits with 1 where one is not told in ROUNDS (20).
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from benchmarks.planted import copied

ROUNDS = 20
KIND = "answers"
"""The kind of work that takes the least time."""


@dataclass(frozen=True)
class Planted:
    """In `module`, `fault` in place of `right`. Rounds must tell it with `words`."""

    module: str
    right: str
    fault: str
    words: str

    def found(self, folder: Path, rounds: int) -> int:
        """How many rounds it took in a copy in `folder`; 0: they were not enough."""
        root = copied(folder)
        source = (root / self.module).read_text()
        if source.count(self.right) != 1:
            raise ValueError(f"{self.module} has {self.right!r} {source.count(self.right)} times; plant another fault")
        (root / self.module).write_text(source.replace(self.right, self.fault))
        for seed in range(1, rounds + 1):
            environment = {**os.environ, "PYTHONPATH": str(root), "TMPDIR": str(folder), "CHAOS_KIND": KIND,
                           "CHAOS_SEED": str(seed), "CHAOS_ROUNDS": "1"}  # fmt: skip
            command = [sys.executable, "-m", "benchmarks.chaos"]
            done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
            if any(self.words in line for line in done.stdout.splitlines() if line.strip().startswith("broken: ")):
                return seed
        return 0


FAULTS = {
    "an answer that is recorded is asked for again": Planted(
        "refed_dspy/teachers/recorded.py",
        "return self.from_ledger(asked, key) or self.from_reused_run(asked, key) or await self.ask(asked, key)",
        "return await self.ask(asked, key)",
        "sent after their answer",
    ),
    "a call is not written down before it is sent": Planted(
        "refed_dspy/ledger/recorder.py", "await self.run.group.commit(row)", "pass", "requests at the server"
    ),
    "what calls in flight may cost is not set aside": Planted(
        "refed_dspy/ledger/budget.py",
        "self.spent + self.reserved + worst > caps.max_cost",
        "self.spent > caps.max_cost",
        "max_cost",
    ),
    "one call more than allowed": Planted(
        "refed_dspy/ledger/budget.py", "self.calls >= caps.max_calls", "self.calls > caps.max_calls", "max_calls"
    ),
    "keys stay in what an endpoint says": Planted(
        "refed_dspy/config/keys.py",
        "    if _probes.isdisjoint(zip(*(text[at::_STEP] for at in range(_PROBE)), strict=False)):\n",
        "    if text:\n",
        "the key",
    ),
    "a start loses the last answer": Planted(
        "refed_dspy/ledger/ledger.py",
        "                check_if_new(run_dir / FILE, db)\n",
        "                check_if_new(run_dir / FILE, db)\n"
        '                db.execute("DELETE FROM answers WHERE rowid = (SELECT max(rowid) FROM answers)")\n',
        "committed rows are lost",
    ),
    "files are written in place": Planted(
        "refed_dspy/files.py",
        'descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".refed-")',
        "descriptor, name = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC), str(path)",
        "neither the old",
    ),
}


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS
    missed = 0
    for name, planted in FAULTS.items():
        with tempfile.TemporaryDirectory(prefix="chaos-planted-") as folder:
            found = planted.found(Path(folder), rounds)
        missed += not found
        print(f"{f'told in round {found}' if found else f'NOT TOLD in {rounds} rounds':<24}{name}", flush=True)
    print(f"planted faults told: {len(FAULTS) - missed} of {len(FAULTS)}")
    sys.exit(int(bool(missed)))


if __name__ == "__main__":
    main()
