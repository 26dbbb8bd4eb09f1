"""The accounting of grants: who gets what."""

from __future__ import annotations

from refed_dspy.plugins.cluster.leases import Lease
from tests.plugins.cluster.lease_books import ended, leases_of, taken

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


def test_a_lease_says_how_many_share_what_an_endpoint_allows() -> None:
    leases = leases_of(3, size=90, workers="ab")
    assert taken(leases, "a").workers == 2
    leases.have_workers("abc")
    assert taken(leases, "b").workers == 3


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
