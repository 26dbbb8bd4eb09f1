"""A run's ledger gathered from its shards: every row is there, about the same texts, and the file is any run's."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import refed_dspy
from benchmarks.simulated import SimulatedTeacher
from refed_dspy.data.references import References
from refed_dspy.data.rows import data_rows, dropped_rows
from refed_dspy.ledger.batches import begun, unsettled_calls
from refed_dspy.ledger.connection import FILE
from refed_dspy.ledger.format import FORMAT, check
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.spending import begin_start, seconds_at_work, spent
from refed_dspy.ledger.statements import Answer, Key, answered, failed, reserved, reused, shared
from refed_dspy.ledger.summary import decisions_by_filter, usage_by_model, usage_by_stage
from refed_dspy.plugins.cluster.gather import gather
from tests.plugins.cluster.sharded_run import SHARDS, SIZES, THOUGHT, make_shard, references, shard_folders

TABLES = (
    "meta", "refs", "answers", "reasoning", "shared", "calls", "batches", "batched", "reused", "starts", "failures",
    "proposals", "instructions", "samples", "decisions", "usage",
)  # fmt: skip


def gathered(run: Path) -> int:
    return gather(run, shard_folders(run))


def of_shards(run: Path, read: Callable[[Ledger], Any]) -> list[Any]:
    """What `read` reads of each shard that has a ledger."""
    with ExitStack() as stack:
        folders = [folder for folder in shard_folders(run) if (folder / FILE).is_file()]
        return [read(stack.enter_context(Ledger.read(folder))) for folder in folders]


def of_run(run: Path, read: Callable[[Ledger], Any]) -> Any:
    with Ledger.read(run) as ledger:
        return read(ledger)


def tables(run: Path) -> dict[str, list[Any]]:
    """Every row of the run's ledger."""
    with Ledger.read(run) as ledger:
        return {table: ledger.db.execute(f"SELECT * FROM {table}").fetchall() for table in TABLES}


def described(query: str) -> Callable[[Ledger], Counter[Any]]:
    """The rows of a query, the text of an instruction in the place of an item or number that stands for one."""

    def read(ledger: Ledger) -> Counter[Any]:
        texts = dict(ledger.db.execute("SELECT CAST(id AS TEXT), text FROM instructions"))
        rows = ledger.db.execute(query).fetchall()
        return Counter((texts.get(str(item), item), *rest) for item, *rest in rows)

    return read


def without_its_own(row: dict[str, Any]) -> dict[str, Any]:
    """A row without its number, and without the answer that shards share: the first one's is kept."""
    return {name: value for name, value in row.items() if name not in {"sample", "style_style"}}


def test_every_sample_is_there_with_all_that_led_to_it(run: Path, whole: References) -> None:
    made = of_shards(run, lambda ledger: list(data_rows(ledger, reasoning=True)))
    moments = of_shards(run, lambda ledger: [at for (at,) in ledger.db.execute("SELECT created FROM samples")])
    assert gathered(run) == sum(SIZES)
    rows = of_run(run, lambda ledger: list(data_rows(ledger, reasoning=True)))
    in_order = sorted(
        (moment, shard, row["sample"], without_its_own(row))
        for shard, (times, each) in enumerate(zip(moments, made, strict=True))
        for moment, row in zip(times, each, strict=True)
    )
    assert [without_its_own(row) for row in rows] == [row for *_, row in in_order]
    assert [row["sample"] for row in rows] == list(range(1, sum(SIZES) + 1))
    assert all(row["cost"] > 0 and row["reasoning"] == THOUGHT for row in rows)
    shard_of = {row["instruction"]: shard for shard, each in enumerate(made) for row in each}
    assert refed_dspy.read_run(run).export("jsonl", run / "rows.jsonl") == sum(SIZES)
    for line in (run / "rows.jsonl").read_text().splitlines():
        row = json.loads(line)
        own = {reference.id: reference for reference in whole.items[shard_of[row["instruction"]] :: SHARDS]}
        assert own[row["reference"]].source == row["reference_source"], "it is about one of its shard"


QUESTIONS = {
    "calls": "SELECT item, stage, key, model, outcome, prompt_tokens, completion_tokens, cost, created FROM calls",
    "instructions": "SELECT i.id, r.id, feature, round, digest, used, sample FROM instructions i JOIN refs r"
    " ON r.position = reference",
    "decisions": "SELECT instruction, filter, position, kept, score, reason, detail, created FROM decisions",
    "proposals": "SELECT r.id, feature, round, kept, duplicates, surplus FROM proposals JOIN refs r"
    " ON r.position = reference",
    "asked": "SELECT item, stage, key, repetition FROM asked",
}


def test_every_row_of_the_shards_is_there_about_the_same_texts(run: Path) -> None:
    gathered(run)
    for name, query in QUESTIONS.items():
        own = of_shards(run, described(query))
        assert all(own) and of_run(run, described(query)) == sum(own, Counter()), name


def test_a_reference_whose_id_is_a_number_is_no_instruction(run: Path) -> None:
    id_ = references()[1].id
    assert id_.isdigit()
    asked = f"SELECT stage, key FROM calls WHERE item = '{id_}' ORDER BY key"
    calls = of_shards(run, lambda ledger: ledger.db.execute(asked).fetchall())
    gathered(run)
    assert of_run(run, lambda ledger: ledger.db.execute(asked).fetchall()) == calls[1] != []


def test_an_item_of_a_program_s_own_stays_what_it_is(run: Path) -> None:
    items = ["", "1 apple", "007", "-3", "1/2"]
    with Ledger.create(shard_folders(run)[1]) as ledger:
        for item in items:
            ledger.commit(answered(Key("own", item, 0, f"key of {item}"), Answer("{}"), "endpoint", []))
    gathered(run)
    rows = of_run(run, lambda ledger: ledger.db.execute("SELECT item FROM answers WHERE stage = 'own'").fetchall())
    assert sorted(rows) == sorted((item,) for item in items)


def test_what_was_used_adds_up(run: Path) -> None:
    gathered(run)
    for read in (usage_by_stage, lambda ledger: {use["model"]: use for use in usage_by_model(ledger)}):
        parts, whole = of_shards(run, read), of_run(run, read)
        assert set(whole) == {name for part in parts for name in part}
        for name, use in whole.items():
            for column, number in use.items():
                if isinstance(number, int):
                    assert number == sum(part[name][column] for part in parts if name in part), (name, column)
    costs = of_shards(run, lambda ledger: spent(ledger).picodollars)
    assert of_run(run, lambda ledger: spent(ledger).picodollars) == sum(costs) > 0
    status = refed_dspy.read_run(run).status
    assert status["kept"] == sum(SIZES) and status["caps"]["max_cost"] == 5.0 and status["size"] == 40
    assert status["references"] == len(references()) and status["left_out"] == {"duplicate": 3}
    firsts = "SELECT stage, first, (SELECT min(id) FROM calls c WHERE c.stage = usage.stage) FROM usage"
    assert all(first == least for _, first, least in of_run(run, lambda ledger: ledger.db.execute(firsts).fetchall()))


def test_filters_dropped_what_they_dropped(run: Path) -> None:
    gathered(run)
    parts = of_shards(run, lambda ledger: Counter(map(repr, dropped_rows(ledger))))
    assert of_run(run, lambda ledger: Counter(map(repr, dropped_rows(ledger)))) == sum(parts, Counter())
    counts = of_shards(run, lambda ledger: {each["filter"]: each["dropped"] for each in decisions_by_filter(ledger)})
    for each in of_run(run, decisions_by_filter):
        assert each["dropped"] == sum(part[each["filter"]] for part in counts), each
    assert sum(sum(part.values()) for part in counts) > 0


def test_the_file_is_a_ledger_like_any_other_known_to_be_whole(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gathered(run)
    made = "SELECT type, name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite_%' ORDER BY name"
    with Ledger.create(tmp_path / "new") as new, Ledger.read(run) as ledger:
        check(ledger.db)
        assert ledger.db.execute(made).fetchall() == new.db.execute(made).fetchall()
        for pragma, value in {"user_version": FORMAT, "journal_mode": "wal", "integrity_check": "ok"}.items():
            assert ledger.db.execute(f"PRAGMA {pragma}").fetchone()[0] == value
        calls = ledger.db.execute("SELECT id, created FROM calls ORDER BY id").fetchall()
    numbers, moments = zip(*calls, strict=True)
    assert numbers == tuple(range(1, len(numbers) + 1)) and list(moments) == sorted(moments)
    assert {path.name for path in run.iterdir()} == {FILE, ".lock", ".checked", "shards"}
    monkeypatch.setattr("refed_dspy.ledger.format.check", lambda db: 1 / 0)
    assert len(refed_dspy.read_run(run)) == sum(SIZES), "nobody checks it again"


def test_twice_gives_the_same_rows_and_a_shard_that_was_never_begun_none(run: Path) -> None:
    gathered(run)
    before = tables(run)
    shard_folders(run)[3].mkdir()
    (shard_folders(run)[3] / FILE).touch()  # killed as it was made
    assert gathered(run) == sum(SIZES) and tables(run) == before


NUMBERED = "SELECT seq, text, s.created FROM samples s JOIN instructions i ON i.id = instruction ORDER BY seq"


def test_samples_keep_their_numbers_as_shards_grow_also_where_a_clock_is_behind(
    run: Path, whole: References, server: SimulatedTeacher
) -> None:
    gathered(run)
    before = of_run(run, lambda ledger: ledger.db.execute(NUMBERED).fetchall())
    server.control(seed=1)
    make_shard(server, run, whole, 0, SIZES[0] + 5)
    make_shard(server, run, whole, 3, 4)
    with Ledger.create(shard_folders(run)[3]) as ledger:
        ledger.commit([("UPDATE samples SET created = created - 5000", ())])
    assert gathered(run) == sum(SIZES) + 9
    after = of_run(run, lambda ledger: ledger.db.execute(NUMBERED).fetchall())
    assert after[: len(before)] == before and [seq for seq, *_ in after] == list(range(1, sum(SIZES) + 10))
    moments = [moment for *_, moment in after[len(before) :]]
    assert moments == sorted(moments)
    of_run(run, lambda ledger: check(ledger.db))


def test_settings_stay_and_the_teachers_of_the_shards_are_added(run: Path) -> None:
    before = tables(run)["meta"]
    other = {"model": "another", "endpoint": "elsewhere"}
    with Ledger.create(shard_folders(run)[1]) as ledger:
        ledger.set_meta(asked_teachers=[other, *ledger.meta("asked_teachers")], size=77, max_cost=0.5)
    gathered(run)
    asked = of_run(run, lambda ledger: ledger.meta("asked_teachers"))
    assert [teacher["model"] for teacher in asked] == ["sim/sim-model", "another"]
    kept = [row for row in tables(run)["meta"] if row[0] != "asked_teachers"]
    assert kept == [row for row in before if row[0] != "asked_teachers"]


def test_a_start_lasts_as_long_as_those_of_its_shards(run: Path, whole: References, server: SimulatedTeacher) -> None:
    ((first, _),) = tables(run)["starts"]
    last = "SELECT max(last) FROM starts"
    until = max(of_shards(run, lambda ledger: ledger.db.execute(last).fetchone()[0]))
    with Ledger.create(run) as ledger:
        begin_start(ledger)
        ((second,),) = ledger.db.execute("SELECT max(begun) FROM starts").fetchall()
    server.control(seed=1)
    make_shard(server, run, whole, 3, 4)
    with Ledger.create(run) as ledger:
        begin_start(ledger)  # in which no shard did anything
    later = of_shards(run, lambda ledger: ledger.db.execute(last).fetchone()[0])[3]
    gathered(run)
    assert tables(run)["starts"][:2] == [(first, until), (second, later)] and later > second > until > first
    assert [last for _, last in tables(run)["starts"][2:]] == [0.0]
    assert of_run(run, seconds_at_work) == pytest.approx(until - first + later - second)


# --- what is in two shards


def test_one_answer_of_two_shards_is_kept_and_given_to_both(run: Path) -> None:
    twins = [Key("style", "1", 0, "twin"), Key("style", "2", 0, "twin")]
    for shard, key in enumerate(twins):
        with Ledger.create(shard_folders(run)[shard]) as ledger:
            answer = Answer(f'{{"style": "{shard}"}}', reasoning="the second's" if shard else "")
            ledger.commit(answered(key, answer, "endpoint", []))
            ledger.commit([*shared(Key("style", "3", 0, "twin")), *reused("twin", "model")])
    texts = of_shards(run, lambda ledger: dict(ledger.db.execute("SELECT id, text FROM instructions")))
    gathered(run)
    query = "SELECT item, stage, output FROM asked WHERE key = 'twin'"
    items = {texts[0][1], texts[0][3], texts[1][2], texts[1][3]}
    assert of_run(run, described(query)) == {(text, "style", '{"style": "0"}'): 1 for text in items}
    assert of_run(run, lambda ledger: ledger.reasoning("twin")) == "", "what the other one thought is not of this one"
    assert tables(run)["reused"] == [("twin", "model")]


def test_one_failure_of_two_shards_is_kept(run: Path) -> None:
    for shard, item in enumerate(("1", "2")):
        with Ledger.create(shard_folders(run)[shard]) as ledger:
            ledger.commit(failed(Key("style", item, 0, "twin"), "malformed", f"in {shard}", True, []))
    failures = described("SELECT item, key, stage, kind, reason, final, created FROM failures")
    first = {key: (item, key, *rest) for part in of_shards(run, failures)[::-1] for item, key, *rest in part}
    gathered(run)
    assert set(of_run(run, failures)) == set(first.values()) and len(first) > 1
    assert of_run(run, lambda ledger: ledger.failure("twin")) == ("malformed", "in 0", True)


def test_a_batch_keeps_its_calls(run: Path) -> None:
    names = ("one", "two")
    for shard, name in enumerate(names):
        with Ledger.create(shard_folders(run)[shard]) as ledger:
            number = ledger.last_call() + 1
            key = Key("style", str(shard + 1), 0, name)
            ledger.commit(reserved(number, key, f"model {name}", "endpoint", 7))
            ledger.commit(begun(1, name, "endpoint", f"model {name}", [number]))
            ledger.commit([("UPDATE batched SET answer = ?", (f"answer {name}",))])
    gathered(run)
    calls = of_run(run, unsettled_calls)
    assert {(call.key, call.model, call.cost) for call in calls} == {(name, f"model {name}", 7) for name in names}
    joined = "SELECT c.key, b.nonce, w.answer FROM batched w JOIN calls c ON c.id = call JOIN batches b ON b.id = batch"
    rows = of_run(run, lambda ledger: ledger.db.execute(joined).fetchall())
    assert sorted(rows) == [(name, name, f"answer {name}") for name in names]
