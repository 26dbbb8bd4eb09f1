"""The accounting of grants: who gets what, and that it always adds up."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Collection

from refed_dspy.runs.cluster.account import Account, Amounts
from refed_dspy.runs.cluster.leases import Cap, Lease, Leases, Reply
from tests.runs.cluster.simulated_cluster import Books, Settings, SimulatedCluster


def accounting(shards: int, settings: Settings) -> Leases:
    money, calls = Cap("spent", settings.max_cost, settings.least), Cap("calls", settings.max_calls, 1)
    return Leases([Account(shard) for shard in range(shards)], settings.size, money, calls)


class InMemory(Books):
    def __init__(self, shards: int, settings: Settings) -> None:
        self.made = accounting(shards, settings)

    @property
    def leases(self) -> Leases:
        return self.made

    def rebuild(self) -> None:
        self.made = self.made.copy()

    def begin(self, settings: Settings) -> None:
        accounts = self.made.accounts
        self.made = accounting(len(accounts), settings)
        self.made.accounts = list(accounts)
        self.made.begin_job()

    def have_workers(self, names: Collection[str]) -> None:
        self.made.have_workers(names)

    def take(self, worker: str) -> Lease | None:
        return self.made.take(worker)

    def report(self, worker: str, lease: Lease, used: Amounts) -> Reply:
        return self.made.report(worker, lease.shard, lease.epoch, used)

    def give_back(self, worker: str, lease: Lease, used: Amounts, dry: bool) -> bool:
        return self.made.give_back(worker, lease.shard, lease.epoch, used, dry)


def simulated(seed: int) -> SimulatedCluster:
    rng = random.Random(seed)
    shards, least = rng.randint(1, 8), rng.randint(1, 50)
    size = rng.randint(1, 120)
    max_cost = rng.choice([None, rng.randint(least, 3 * size * least)])
    max_calls = rng.choice([None, None, rng.randint(1, 4 * size)])
    settings = Settings(size, max_cost, max_calls, least)
    return SimulatedCluster(InMemory(shards, settings), settings, shards, seed)


def leases_of(
    shards: int, size: int, max_cost: int | None = None, max_calls: int | None = None, workers: str = "abc"
) -> Leases:
    """Workers a, b, c; a call costs 10 picodollars at most."""
    leases = accounting(shards, Settings(size, max_cost, max_calls, least=10))
    leases.have_workers(workers)
    return leases


def taken(leases: Leases, worker: str) -> Lease:
    lease = leases.take(worker)
    assert lease is not None
    return lease


def ended(
    leases: Leases, worker: str, lease: Lease, kept: int, spent: int = 0, calls: int = 0, dry: bool = False
) -> None:
    assert leases.give_back(worker, lease.shard, lease.epoch, Amounts(kept, spent, calls), dry)


# --- samples


def test_each_shard_gets_its_part_of_the_size() -> None:
    leases = leases_of(3, size=10)
    assert [taken(leases, name) for name in "abc"] == [
        Lease(0, 1, 4, None, None), Lease(1, 1, 3, None, None), Lease(2, 1, 3, None, None)
    ]  # fmt: skip


def test_who_asks_again_gets_the_lease_that_it_has() -> None:
    leases = leases_of(3, size=10)
    assert taken(leases, "a") == taken(leases, "a") and leases.holders() == {"a": 0}


def test_what_a_dry_shard_leaves_goes_to_those_that_have_less_than_their_part() -> None:
    leases = leases_of(4, size=40)
    first = taken(leases, "a")
    taken(leases, "b")
    ended(leases, "a", first, kept=2, dry=True)
    assert [taken(leases, name).size for name in "ac"] == [14, 14]


def test_and_once_all_have_it_to_the_smallest() -> None:
    leases = leases_of(3, size=31)
    held = {name: taken(leases, name) for name in "abc"}
    ended(leases, "a", held["a"], kept=11)
    ended(leases, "b", held["b"], kept=10)
    assert leases.take("a") is None and not leases.finished()
    ended(leases, "c", held["c"], kept=0, dry=True)
    assert taken(leases, "a") == Lease(1, 2, 15, None, None)
    assert taken(leases, "b") == Lease(0, 2, 16, None, None)


def test_a_shard_that_was_begun_goes_first() -> None:
    leases = leases_of(3, size=30)
    taken(leases, "a")
    second = taken(leases, "b")
    leases.have_workers("bc")
    ended(leases, "c", taken(leases, "c"), kept=0)
    ended(leases, "b", second, kept=3, calls=9)
    assert [taken(leases, name).shard for name in "bc"] == [1, 0]


def test_nothing_is_granted_beyond_the_size() -> None:
    leases = leases_of(4, size=2)
    assert [taken(leases, name).size for name in "ab"] == [1, 1]
    assert leases.take("c") is None


def test_an_end_when_all_is_made() -> None:
    leases = leases_of(2, size=4, workers="a")
    for size in (2, 2):
        assert not leases.finished()
        ended(leases, "a", taken(leases, "a"), kept=size)
    assert leases.finished() and leases.take("a") is None


# --- money and calls


def test_money_is_divided_among_the_workers_that_hold_nothing() -> None:
    leases = leases_of(9, size=90, max_cost=900, max_calls=90)
    assert [taken(leases, name).max_cost for name in "abc"] == [300, 300, 300]
    assert [account.granted.calls for account in leases.accounts[:4]] == [30, 30, 30, 0]


def test_but_not_among_more_than_there_are_shards_for() -> None:
    leases = leases_of(2, size=90, max_cost=900, workers="abcdefgh")
    assert [taken(leases, name).max_cost for name in "ab"] == [450, 450]
    assert taken(leases_of(9, size=1, max_cost=900), "a").max_cost == 900


def test_a_lease_is_for_several_calls_at_least() -> None:
    leases = leases_of(9, size=90, max_cost=100)
    assert [taken(leases, name).max_cost for name in "ab"] == [40, 40]
    assert leases.take("c") is None and not leases.finished(), "they may give something back"


def test_what_was_not_used_goes_to_the_next_lease() -> None:
    leases = leases_of(9, size=90, max_cost=900)
    first = taken(leases, "a")
    taken(leases, "b")
    taken(leases, "c")
    ended(leases, "a", first, kept=10, spent=120, calls=40)
    assert taken(leases, "a") == Lease(1 + 2, 1, 10, 180, None)


def test_the_last_one_gets_the_rest_and_less_than_a_call_is_nothing() -> None:
    leases = leases_of(2, size=90, max_cost=100, workers="ab")
    first, second = taken(leases, "a"), taken(leases, "b")
    ended(leases, "a", first, kept=5, spent=45, calls=9)
    assert leases.take("a") is None
    ended(leases, "b", second, kept=5, spent=35, calls=9)
    assert taken(leases, "a") == Lease(0, 2, 45, 65, None)
    assert leases.take("b") is None and not leases.finished()
    ended(leases, "a", taken(leases, "a"), kept=6, spent=56, calls=12)
    assert leases.finished() and leases.take("b") is None


def test_a_rest_that_moves_nothing_here_may_do_there() -> None:
    leases = leases_of(2, size=90, max_cost=20, workers="a")
    assert taken(leases, "a") == Lease(0, 1, 45, 20, None)
    ended(leases, "a", taken(leases, "a"), kept=0)
    assert not leases.finished() and taken(leases, "a") == Lease(1, 1, 90, 20, None)
    ended(leases, "a", taken(leases, "a"), kept=0)
    assert leases.finished() and [account.stuck for account in leases.accounts] == [True, True]


def test_calls_that_fail_for_nothing_are_a_move_only_where_calls_are_capped() -> None:
    for max_calls in (None, 100):
        leases = leases_of(1, size=90, max_calls=max_calls)
        ended(leases, "a", taken(leases, "a"), kept=0, calls=7)
        assert leases.finished() == (max_calls is None)


# --- deaths


def test_the_shard_of_a_dead_holder_goes_first_with_what_it_was_granted() -> None:
    leases = leases_of(9, size=90, max_cost=900)
    lease = taken(leases, "b")
    assert leases.report("b", lease.shard, lease.epoch, Amounts(4, 100, 30)) is Reply.GO_ON
    leases.have_workers("ac")
    assert leases.holders() == {}
    again = taken(leases, "a")
    assert (again.shard, again.epoch, again.size) == (lease.shard, 2, lease.size)
    assert again.max_cost == 300 + (900 - 300) // 2


def test_however_little_there_is_to_add() -> None:
    leases = leases_of(2, size=90, max_cost=400, workers="a")
    assert taken(leases, "a").max_cost == 400
    leases = begun_again(leases, size=90, max_cost=420)
    assert taken(leases, "x").max_cost == 410


def test_what_a_dead_holder_may_have_used_is_granted_until_the_next_one_has_looked() -> None:
    leases = leases_of(1, size=90, max_cost=100, workers="a")
    assert taken(leases, "a").max_cost == 100
    leases.have_workers("b")
    assert taken(leases, "b") == Lease(0, 2, 90, 100, None)
    leases.report("b", 0, 2, Amounts(60, 97, 80))
    ended(leases, "b", taken(leases, "b"), kept=60, spent=97, calls=80)
    assert leases.finished() and not leases.accounts[0].stuck


def test_a_look_after_a_death_that_moves_nothing_does_not_make_it_stuck() -> None:
    leases = leases_of(1, size=90)
    taken(leases, "a")
    leases.have_workers("bc")
    for stuck in (False, True):
        ended(leases, "b", taken(leases, "b"), kept=0)
        assert leases.accounts[0].stuck is stuck


def test_one_that_was_believed_dead_is_heard_until_the_shard_is_leased_again() -> None:
    leases = leases_of(2, size=90)
    lease = taken(leases, "a")
    leases.have_workers("bc")
    assert leases.report("a", lease.shard, lease.epoch, Amounts(1, 1, 1)) is Reply.NOT_YOURS
    assert leases.accounts[0].used.kept == 0
    ended(leases, "a", lease, kept=7)
    assert taken(leases, "b") == Lease(0, 2, 45, None, None)
    before = leases.copy()
    assert not leases.give_back("a", lease.shard, lease.epoch, Amounts(9, 9, 9), False)
    assert leases == before


def test_one_that_was_believed_dead_and_moved_nothing_says_nothing_of_its_shard() -> None:
    leases = leases_of(1, size=90)
    lease = taken(leases, "a")
    leases.have_workers("bc")
    ended(leases, "a", lease, kept=0)
    assert not leases.accounts[0].stuck and taken(leases, "b").epoch == 2


def test_what_is_told_twice_counts_once() -> None:
    leases = leases_of(1, size=90)
    lease = taken(leases, "a")
    for _ in range(2):
        assert leases.report("a", 0, 1, Amounts(3, 3, 3)) is Reply.GO_ON
    for _ in range(2):
        ended(leases, "a", lease, kept=8)
    assert leases.report("a", 0, 1, Amounts(3, 3, 3)) is Reply.NOT_YOURS
    assert leases.accounts[0].used == Amounts(8, 0, 0)
    second = taken(leases, "a")
    assert not leases.give_back("a", 0, 1, Amounts(8, 0, 0), False), "the lease before"
    assert not leases.give_back("b", 0, 2, Amounts(9, 0, 0), False), "another's lease"
    for _ in range(2):
        ended(leases, "a", second, kept=8)
        assert leases.accounts[0].stuck


# --- another start


def begun_again(leases: Leases, size: int, max_cost: int | None = None) -> Leases:
    books = InMemory(1, Settings(1, None, None, 10))
    books.made = leases
    books.begin(Settings(size, max_cost, None, least=10))
    books.have_workers("xyz")
    return books.leases


def test_a_smaller_size_takes_nothing_away() -> None:
    leases = leases_of(3, size=90)
    for name in "ab":
        ended(leases, name, taken(leases, name), kept=30)
    leases = begun_again(leases, size=50)
    assert leases.finished() and sum(account.granted.kept for account in leases.accounts) == 60


def test_a_smaller_size_binds_those_who_take_over_from_the_dead() -> None:
    leases = leases_of(2, size=100)
    for name, kept in (("a", 30), ("b", 20)):
        lease = taken(leases, name)
        leases.report(name, lease.shard, lease.epoch, Amounts(kept, 0, 0))
    leases = begun_again(leases, size=80)
    first, second = taken(leases, "x"), taken(leases, "y")
    assert (first.size, second.size) == (30, 30), "each may really have 50: 100 in all, 20 too many"
    leases.report("x", 0, 2, Amounts(48, 0, 0))
    leases.report("y", 1, 2, Amounts(20, 0, 0))
    assert [account.granted.kept for account in leases.accounts] == [48, 30]
    ended(leases, "x", first, kept=48)
    ended(leases, "y", second, kept=30)
    assert taken(leases, "x").size == 32


def test_a_cap_that_is_new_counts_what_the_dead_may_have_spent() -> None:
    leases = leases_of(2, size=100)
    lease = taken(leases, "a")
    leases.report("a", lease.shard, lease.epoch, Amounts(5, 50, 9))
    leases = begun_again(leases, size=100, max_cost=1_000)
    assert taken(leases, "x") == Lease(0, 2, 50, 1_000, None)
    assert leases.take("y") is None, "what the first one spent is not known yet"
    ended(leases, "x", taken(leases, "x"), kept=20, spent=400, calls=90)
    assert taken(leases, "x") == Lease(0, 3, 50, 700, None)


def test_and_where_two_may_have_spent_it_both_are_looked_at_first() -> None:
    leases = leases_of(3, size=99)
    for name in "ab":
        lease = taken(leases, name)
        leases.report(name, lease.shard, lease.epoch, Amounts(5, 50, 9))
    leases = begun_again(leases, size=99, max_cost=1_000)
    assert [taken(leases, name).max_cost for name in "xy"] == [50, 50]
    assert leases.take("z") is None and not leases.finished()


def test_another_start_tries_again_what_gave_nothing() -> None:
    leases = leases_of(2, size=100, workers="a")
    ended(leases, "a", taken(leases, "a"), kept=0, dry=True)
    ended(leases, "a", taken(leases, "a"), kept=0)
    assert leases.finished()
    leases.stop()
    leases = begun_again(leases, size=100)
    assert [taken(leases, name).shard for name in "xy"] == [0, 1]


def test_after_a_stop_nothing_is_granted_and_holders_hear_of_it() -> None:
    leases = leases_of(2, size=100)
    lease = taken(leases, "a")
    leases.stop()
    assert leases.take("b") is None and leases.finished()
    assert leases.report("a", lease.shard, lease.epoch, Amounts(1, 1, 1)) is Reply.STOP
    assert leases.report("b", lease.shard, lease.epoch, Amounts(2, 2, 2)) is Reply.NOT_YOURS
    ended(leases, "a", lease, kept=1)


# --- files that a frozen holder still has


def left(leases: Leases, worker: str) -> int:
    """The shard of the next lease of `worker`, which finds that somebody has its files."""
    lease = taken(leases, worker)
    leases.leave(worker, lease.shard, lease.epoch)
    return lease.shard


def test_a_shard_that_was_put_off_waits_for_the_others() -> None:
    leases = leases_of(3, size=90)
    first = taken(leases, "a")
    leases.report("a", first.shard, first.epoch, Amounts(10, 0, 20))
    leases.have_workers("bc")
    assert left(leases, "b") == first.shard
    assert [taken(leases, name).shard for name in "bc"] == [1, 2]
    assert leases.report("a", first.shard, first.epoch, Amounts(12, 0, 24)) is Reply.NOT_YOURS
    assert sum(account.granted.kept for account in leases.accounts) == 90


def test_and_is_tried_again_when_there_is_nothing_else() -> None:
    leases = leases_of(2, size=20, workers="ab")
    frozen = taken(leases, "a")
    leases.have_workers("b")
    assert left(leases, "b") == frozen.shard
    ended(leases, "b", taken(leases, "b"), kept=10)
    assert not leases.finished() and left(leases, "b") == frozen.shard
    lease = taken(leases, "b")
    assert (lease.shard, lease.size) == (frozen.shard, 10) and lease.epoch > frozen.epoch
    assert leases.report("b", lease.shard, lease.epoch, Amounts(4, 0, 8)) is Reply.GO_ON
    assert leases.put_off == frozenset()


def test_only_the_holder_puts_off() -> None:
    leases = leases_of(2, size=20)
    lease = taken(leases, "a")
    leases.leave("b", lease.shard, lease.epoch)
    leases.leave("a", lease.shard, lease.epoch - 1)
    assert leases.holders() == {"a": lease.shard} and not leases.put_off


# --- everything at once


def test_whatever_happens_it_adds_up_and_ends() -> None:
    outcomes = Counter[str]()
    for seed in range(400):
        cluster = simulated(seed)
        try:
            cluster.run(steps=80)
            outcomes[cluster.outcome()] += 1
        except AssertionError as error:
            error.add_note(f"seed {seed}")
            raise
    assert min(outcomes[how] for how in ("complete", "at a cap", "short")) > 40, outcomes
