"""The page for publication: what is removed, and what stays."""

from __future__ import annotations

from typing import Any

from refed_dspy.plugins.share.report.glance import Fact, Lead, Table
from refed_dspy.plugins.share.report.page import Page
from refed_dspy.plugins.share.report.report import public
from refed_dspy.plugins.share.report.rows import Rows
from refed_dspy.plugins.share.secrets import PRIVATE
from tests.support.said import Said

NAME, SOURCE = "the set", "refs.jsonl row 3"
PATH = "hosted_vllm//home/somebody/models/big"


def page() -> Page:
    settings = [
        ["teacher of other stages", f"{PATH} + openai/gpt-4o-mini"],
        ["program", "ReferenceLevelFeedback"], ["teacher", PATH], ["judge", PATH], ["seed", "3"],
        ["saved program", "path /home/somebody/program.json"], ["filters", 'overlap {"against": "/home/somebody/x"}'],
        ["prices of", "/home/somebody/prices.json"],
    ]  # fmt: skip
    tables = [
        Table("failures", "F", "", ("stage", "kind", "how many", "for instance"), [["s", "k", "2", "at 10.0.0.7: no"]]),
        Table("settings", "S", "", ("what", "value"), settings),
        Table("models", "M", "", ("model", "endpoint", "calls"), [[PATH, "http://10.0.0.7/v1", "5"]]),
    ]
    names = {
        "writers": [{"model": PATH, "endpoint": "http://10.0.0.7/v1"}],
        "references": [{"id": "a", "source": "/home/somebody/refs.jsonl row 3", "instruction": "Do."}],
        "features": ["form"],
    }
    lead, facts = Lead(1, 1, (PATH,), "$1"), [Fact("Samples", "1")]
    decisions: list[Any] = [
        [[0, 1, 2.0, "", "fine: at /home"], [1, 0, None, "judge abstained", "unfit: at 10.0.0.7"]],
        [],
    ]
    columns = {"instruction": ["what was written at /home stays", ""], "decisions": decisions}
    return Page(
        "somebody's", lead, "at its cap", "in /home/somebody", facts, ["note"], (), (), tables, Rows(names, columns, 7)
    )


def test_what_is_private_is_removed(said: Said) -> None:
    published = public(page(), NAME)
    assert published.rows is not None and isinstance(published.lead, Lead)
    kept = {name: value for name, value in vars(published).items() if name != "rows"} | {"names": published.rows.names}
    for secret in ("somebody", "10.0.0.7", "/home"):
        assert secret not in str(kept), secret
    failures, settings, models = published.tables
    assert failures.rows == [["s", "k", "2"]]
    said([list(row) for row in settings.rows])
    assert len(failures.columns) == 3 and models.rows == [["big", PRIVATE, "5"]]
    assert (published.title, list(published.lead.by), published.reason) == (NAME, ["big"], "")
    assert published.rows.names["references"][0]["source"] == SOURCE
    assert published.rows.names["features"] == ["form"] and published.facts == page().facts


def test_what_the_models_wrote_stays_and_of_a_judges_abstention_only_the_kind() -> None:
    published, before = public(page(), NAME).rows, page().rows
    assert published is not None and before is not None and published.columns.keys() == before.columns.keys()
    assert published.left_out == 7
    assert published.columns["instruction"] == before.columns["instruction"]
    kept, abstained = before.columns["decisions"][0]
    assert published.columns["decisions"] == [[kept, [*abstained[:-1], "unfit"]], []]
