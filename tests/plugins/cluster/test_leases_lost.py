"""Leases of the dead, of the frozen and of the start before."""

from __future__ import annotations

from refed_dspy.plugins.cluster.leases import Amounts, Lease, Leases, Reply
from tests.plugins.cluster.lease_books import begun_again, ended, leases_of, taken

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


def test_one_that_was_believed_dead_gets_no_other_lease() -> None:
    leases = leases_of(2, size=90)
    taken(leases, "a")
    leases.have_workers("bc")
    assert leases.take("a") is None and leases.take("b") is not None


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
