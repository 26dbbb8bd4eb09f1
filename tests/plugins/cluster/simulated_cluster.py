"""A cluster without machines: workers that take leases, work, die, are believed dead, come back late; and a driver that
starts again with another size and other caps. After every step it is checked that nothing was granted twice."""

from __future__ import annotations

import random
import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from refed_dspy.plugins.cluster.coordinator import Coordinator
from refed_dspy.plugins.cluster.leases import Amounts, Lease, Leases, Reply, State

MOST_STEPS = 20_000
"""A run that is not at its end by then would never be."""


@dataclass(frozen=True)
class Settings:
    """What a start of the driver is given."""

    size: int
    max_cost: int | None
    max_calls: int | None
    least: int


def as_killed(path: Path) -> Path:
    """A copy of the file as a SIGKILL in this moment would leave it."""
    folder = path.parent / f"{path.parent.name}-killed"
    folder.mkdir()
    for suffix in ("", "-wal"):
        if (file := Path(f"{path}{suffix}")).exists():
            shutil.copy(file, folder)
    return folder / path.name


class Books:
    """A coordinator that is killed, and made again from what is in its file."""

    def __init__(self, path: Path, shards: int, settings: Settings) -> None:
        self.path, self.shards, self.settings, self.jobs = path, shards, settings, 0
        self._open()

    def _open(self) -> None:
        self.made = Coordinator(
            self.path, shards=self.shards, size=self.settings.size, job=f"job {self.jobs}",
            max_cost=self.settings.max_cost, max_calls=self.settings.max_calls, least=self.settings.least,
        )  # fmt: skip
        self.made._file.db.execute("PRAGMA synchronous=OFF")  # a copy reads what was written, on the disk or not

    @property
    def leases(self) -> Leases:
        return self.made._leases

    def rebuild(self) -> None:
        before, self.path = self.leases, as_killed(self.path)
        self.made.close()
        self._open()
        assert self.leases == before

    def begin(self, settings: Settings) -> None:
        self.settings, self.jobs = settings, self.jobs + 1
        self.made.close()
        self._open()

    def have_workers(self, names: Collection[str]) -> None:
        self.made.workers(names)

    def take(self, worker: str) -> Lease | None:
        return self.made.take(worker)

    def report(self, worker: str, lease: Lease, used: Amounts) -> Reply:
        return self.made.report(worker, lease.shard, lease.epoch, used)

    def give_back(self, worker: str, lease: Lease, used: Amounts, dry: bool) -> bool:
        return self.made.give_back(worker, lease.shard, lease.epoch, used, dry)


class Shard:
    """What is really in a shard's folder, and what it could give. `worst`: the most that a call may cost."""

    def __init__(self, rng: random.Random, least: int, size: int) -> None:
        self.kept = self.spent = self.calls = 0
        self.gives = rng.choice([0, rng.randint(0, size), size, size])
        self.useless = rng.random() < 0.1
        self.worst = rng.choice([least, least, rng.randint(1, 2 * least)])
        self.locked_by = ""

    @property
    def used(self) -> Amounts:
        return Amounts(self.kept, self.spent, self.calls)

    def work(self, rng: random.Random, lease: Lease, calls: int) -> str:
        """Make up to so many calls. Returns why the lease is at its end, or ""."""
        for _ in range(calls):
            if self.kept >= lease.size:
                return "done"
            if self.kept >= self.gives:
                return "dry"
            no_money = lease.max_cost is not None and self.spent + self.worst > lease.max_cost
            if no_money or (lease.max_calls is not None and self.calls >= lease.max_calls):
                return "at its cap"
            self.calls += 1
            if self.useless:
                return "failed"
            self.spent += rng.randint(0, self.worst)
            self.kept += rng.random() < 0.5
        return ""


@dataclass
class Worker:
    name: str
    lease: Lease | None = None
    looked: bool = False


class SimulatedCluster:
    """One run of `books` over so many `shards`, from `seed`."""

    def __init__(self, books: Books, settings: Settings, shards: int, seed: int) -> None:
        self.rng, self.books, self.settings = random.Random(seed), books, settings
        self.shards = [Shard(self.rng, settings.least, settings.size) for _ in range(shards)]
        self.names = 0
        self.ghosts: list[tuple[str, Lease, Amounts]] = []
        self.zombies: list[Worker] = []
        self.interrupted: set[int] = set()
        self.epochs = [0] * shards
        self._start()

    def _start(self) -> None:
        """Workers and limits of a new start: what is used already stays, also where it is more than is allowed now."""
        for shard in self.shards:
            shard.locked_by = ""
        used = [shard.used for shard in self.shards]
        accounts = self.books.leases.accounts
        caps = (self.settings.size, self.settings.max_cost, self.settings.max_calls)
        self.limits = [None if cap is None else max(cap, sum(a[i] for a in used)) for i, cap in enumerate(caps)]
        self.books_limits = [
            None if cap is None else max(cap, sum(a.granted[i] for a in accounts)) for i, cap in enumerate(caps)
        ]
        self.workers = [self._new_worker() for _ in range(self.rng.randint(1, 6))]
        self.zombies.clear()
        self._tell_workers()

    def _new_worker(self) -> Worker:
        self.names += 1
        return Worker(f"worker {self.names}")

    def _tell_workers(self) -> None:
        self.books.have_workers([worker.name for worker in self.workers])

    # --- the life of a run

    def run(self, steps: int) -> None:
        """So many steps in which anything may happen, then to the end in peace."""
        for _ in range(steps):
            self._step()
            self.check()
        self._tell_workers()
        for _ in range(MOST_STEPS):
            for worker in (*self.workers, *self.zombies):
                self._act(worker)
            self.check()
            if self.books.leases.finished() and not any(w.lease for w in (*self.workers, *self.zombies)):
                return
        raise AssertionError("it goes on for ever")

    def _step(self) -> None:
        roll = self.rng.random()
        if roll < 0.75:
            self._act(self.rng.choice([*self.workers, *self.zombies]))
        elif roll < 0.80:
            self._lose(self.workers.pop(self.rng.randrange(len(self.workers))))
            self.workers.append(self._new_worker())
        elif roll < 0.86:
            self._tell_workers()
        elif roll < 0.92:
            self._haunt()
        elif roll < 0.985:
            self.books.rebuild()
        else:
            self._start_again()

    def _lose(self, worker: Worker) -> None:
        """A worker dies, or is only believed dead and goes on until it hears of it."""
        if self.rng.random() < 0.5:
            self.zombies.append(worker)
        elif worker.lease is not None and worker.looked:
            shard = self.shards[worker.lease.shard]
            shard.locked_by = ""
            self.ghosts.append((worker.name, worker.lease, shard.used))

    def _haunt(self) -> None:
        """What a dead worker had sent arrives late, or again."""
        if self.ghosts:
            name, lease, used = self.rng.choice(self.ghosts)
            account = self.books.leases.accounts[lease.shard]
            current = (account.worker, account.epoch) == (name, lease.epoch)
            if self.rng.random() < 0.5:
                reply = self.books.report(name, lease, used)
                assert (reply is Reply.NOT_YOURS) == (not current or account.state is not State.HELD)
            else:
                assert self.books.give_back(name, lease, used, False) == current
                self.interrupted.add(lease.shard)

    def _start_again(self) -> None:
        for worker in (*self.workers, *self.zombies):
            if worker.lease is not None and worker.looked:
                self.ghosts.append((worker.name, worker.lease, self.shards[worker.lease.shard].used))
        size = max(1, round(self.settings.size * self.rng.choice([0.5, 1, 1, 2])))
        max_cost, max_calls = (
            None if cap is None or self.rng.random() < 0.2 else round(cap * self.rng.choice([0.5, 1, 2]))
            for cap in (self.settings.max_cost, self.settings.max_calls)
        )
        self.settings = Settings(size, max_cost, max_calls, self.settings.least)
        self.books.begin(self.settings)
        self._start()

    # --- a worker

    def _act(self, worker: Worker) -> None:
        if worker.lease is None:
            if worker not in self.zombies:
                worker.lease = self.books.take(worker.name)
                assert worker.lease is None or self.books.take(worker.name) == worker.lease
                worker.looked = False
            return
        shard = self.shards[worker.lease.shard]
        if shard.locked_by not in {"", worker.name}:
            return  # the one before is at work still
        shard.locked_by = worker.name
        if not worker.looked or self.rng.random() < 0.3:
            worker.looked = True
            if self.books.report(worker.name, worker.lease, shard.used) is Reply.NOT_YOURS:
                self._leave(worker, shard)
                return
        if why := shard.work(self.rng, worker.lease, self.rng.randint(0, 12)):
            for _ in range(self.rng.randint(1, 2)):
                self.books.give_back(worker.name, worker.lease, shard.used, why == "dry")
            self._leave(worker, shard)

    def _leave(self, worker: Worker, shard: Shard) -> None:
        worker.lease, shard.locked_by = None, ""
        if worker in self.zombies:
            self.zombies.remove(worker)

    # --- what must hold

    def check(self) -> None:
        """At any moment: sums within bounds, in the books and in truth; books that are not below the truth; epochs that
        only grow; one holder a shard."""
        accounts = self.books.leases.accounts
        for field in range(3):
            granted = [account.granted[field] for account in accounts]
            used = [shard.used[field] for shard in self.shards]
            assert all(most >= has for most, has in zip(granted, used, strict=True)), "used more than was granted"
            books_limit, limit = self.books_limits[field], self.limits[field]
            assert books_limit is None or sum(granted) <= books_limit, "granted more than there is"
            assert limit is None or sum(used) <= limit, "used more than there is"
        epochs = [account.epoch for account in accounts]
        assert all(new >= old for new, old in zip(epochs, self.epochs, strict=True)), "an epoch fell"
        self.epochs = epochs
        held = [account.worker for account in accounts if account.state is State.HELD]
        assert len(held) == len(set(held)), "a worker holds two shards"

    def outcome(self) -> str:
        """How the run ended, after checking that it had to end there: "complete", "at a cap" or "short"."""
        leases, settings = self.books.leases, self.settings
        assert [account.used for account in leases.accounts] == [shard.used for shard in self.shards]
        assert all(a.state is State.FREE and a.granted == a.used for a in leases.accounts)
        kept, spent, calls = (sum(shard.used[field] for shard in self.shards) for field in range(3))
        if kept >= settings.size:
            assert kept == self.limits[0]
            return "complete"
        if settings.max_cost is not None and settings.max_cost - spent < settings.least:
            return "at a cap"
        if settings.max_calls is not None and calls >= settings.max_calls:
            return "at a cap"
        for account, shard in zip(leases.accounts, self.shards, strict=True):
            assert account.dry or account.stuck, "there was more to do"
            assert not account.dry or shard.kept == shard.gives
            excused = shard.useless or shard.worst > settings.least or account.shard in self.interrupted
            assert excused or not account.stuck
        return "short"
