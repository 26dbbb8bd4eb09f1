"""What the card states about the rows and how they were made, each checked against a run with values known by hand."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from huggingface_hub import DatasetCard
from markdown_it import MarkdownIt

from refed_dspy import ReferenceLevelFeedback, synthesize
from refed_dspy.ledger.connection import FILE
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.plugins.share.card import COLUMNS, UNKNOWN, Card, CardSettings, Config, terms_of
from refed_dspy.plugins.share.facts import SharedSettings, StageText, run_facts
from refed_dspy.plugins.share.share import SharedFolder, share
from refed_dspy.plugins.share.survey import Copied, DrawnRow, Survey, count_copied
from refed_dspy.runs.result import Synthesis
from tests.support.said import Said
from tests.support.scripted_engine import Writer, fake_lm, references

MARKDOWN = MarkdownIt("commonmark").enable(["table", "strikethrough"])
HOSTILE = (
    "a|b `c` ```\n---\n</details></summary><script>alert(1)</script>\n~~~\n# H\n{{ 7*7 }}{% raw %} <img src=x> **b**"
)
SOURCE = " ".join(f"word{at}" for at in range(20))
"""20 different words: 13 runs of eight."""
GUIDANCE = "Write for | readers who are in a hurry."


class Copying(Writer):
    """Improves to the reference's own text in the first two rows, and leaves the third as it was."""

    def __init__(self) -> None:
        super().__init__()
        self.improved = 0

    def write(self, request: Any) -> str:
        answer = json.loads(super().write(request))
        if "response" in answer:
            answer["response"] = "a plain answer of four"
        if "improved_response" in answer:
            self.improved += 1
            answer["improved_response"] = (
                SOURCE if self.improved <= 2 else "a plain answer of four" if self.improved == 3 else "a plain one"
            )
        return json.dumps(answer)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Synthesis:
    """Five rows of one reference: two copied, one left as it was, two of other words."""
    return synthesize(
        ReferenceLevelFeedback(guidance={"response_generation": GUIDANCE}),
        [{"instruction": "Say twenty words.", "response": SOURCE.upper()}],
        size=5, per_reference=7, seed=3, teacher=fake_lm(Copying(), "openai/gpt-4o-mini"),
        filters=["refusals", {"length": {"min_words": 1, "of": "response"}}], run_dir=tmp_path_factory.mktemp("run"),
        guards=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def made(run: Synthesis, tmp_path_factory: pytest.TempPathFactory) -> SharedFolder:
    return share(run.run_dir, tmp_path_factory.mktemp("above") / "a" / "b" / "out")


@pytest.fixture(scope="module")
def text(made: SharedFolder) -> str:
    """The card of `run`."""
    return (made.folder / "README.md").read_text()


def card_of(run: Synthesis, settings: SharedSettings | None = None, size: int | None = None, **replaced: Any) -> Card:
    with Ledger.read(run.run_dir) as ledger:
        facts = run_facts(ledger)
    survey = Survey(2)
    list(survey.observe([row_of("a b", "c d"), row_of("a b", "a b")]))
    assert facts.account is not None
    account = replace(facts.account, status={**facts.status, "size": size or facts.status["size"]})
    facts = replace(facts, account=account, settings=settings or facts.settings, **replaced)
    return Card(CardSettings("Rows"), facts, survey, [Config("default", "data/*", 2)], "0.1.0", ["en"])


def row_of(
    response: str, improved: str, instruction: str = "Do.", reference: str = "r", feature: str = "f"
) -> dict[str, str]:
    """A run's row."""
    return {
        "reference": reference, "instruction": instruction, "response": response, "improved_response": improved,
        "feature": feature,
    }  # fmt: skip


def rendered(text: str) -> str:
    return str(MARKDOWN.render(text.split("\n---\n", 1)[1]))


# --- text of the references


def row(improved: str, *, instruction: str = "", response: str = "", reference: str = "r") -> DrawnRow:
    return DrawnRow(reference, instruction, response, improved)


def fresh(count: int) -> str:
    return " ".join(f"other{at}" for at in range(count))


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        (SOURCE, 1),
        (SOURCE.upper().replace(" ", ", "), 1),
        (" ".join(SOURCE.split()[:8]), 1),
        (" ".join(SOURCE.split()[:7]), 0),
        (SOURCE + " " + fresh(13), 1),  # 13 of 26 runs
        (SOURCE + " " + fresh(14), 0),  # 13 of 27
        (" ".join(reversed(SOURCE.split())), 0),
        ("", 0),
    ],
)
def test_half_of_the_runs_of_eight_words_is_copied(text: str, rows: int) -> None:
    assert count_copied([row(text)], {"r": ["Ask.", SOURCE]}) == Copied(improved_response=rows, rows=rows)


def test_each_column_is_compared_with_its_reference_and_a_row_counts_once() -> None:
    rows = [
        row(SOURCE, instruction=SOURCE, response=SOURCE), row("", response=SOURCE), row("", instruction=SOURCE),
        row(SOURCE, reference="other"), row(SOURCE, reference="unknown"),
    ]  # fmt: skip
    assert count_copied(rows, {"r": [SOURCE], "other": [fresh(20)]}) == Copied(2, 2, 1, 3)
    halves = SOURCE.split()
    assert count_copied([row(SOURCE)], {"r": [" ".join(halves[:10]), " ".join(halves[10:])]}).rows == 0  # 6 of 13 runs


def test_the_card_and_the_notes_report_copied_text(made: SharedFolder, text: str) -> None:
    sentence = "In 2 rows, half or more of the eight-word runs of the response stand in the reference"
    assert text.count(sentence) == 2
    assert "(that is `improved_response`; of `response` in 0, of `instruction` in 0)" in text
    assert sentence in text.split("## Known limits")[1] and sentence in text.split("## References")[1].split("\n## ")[0]
    assert "5 rows were checked" in text
    for untrue in ("holds their texts", "was written by language models", "as large as was asked for"):
        assert untrue not in text
    [note] = [note for note in made.notes if "word for word" in note]
    assert note.startswith("in 2 of 5 rows") and "so the references' license covers it" in note


def test_that_nothing_was_copied_is_stated_too(tmp_path: Path) -> None:
    made = synthesize(None, references(1), size=2, teacher=fake_lm(Writer()), run_dir=tmp_path / "run")
    shared = share(made.run_dir, tmp_path / "out")
    assert "In 0 rows, half or more of the eight-word runs" in (tmp_path / "out" / "README.md").read_text()
    assert not [note for note in shared.notes if "word for word" in note]


# --- what the improvement changed


def test_rows_that_were_left_as_they_were(text: str) -> None:
    """Words changed of those of both: 1, 1, 0 (left), and twice 'a plain answer of four' to 'a plain one', 4 of 8."""
    assert "improvement left 1 row of 5 as it was. At the median it changed 50% of the words" in text
    assert "over `response`: 4 (4 unjudged; chosen 3.18 times as many characters as rejected (median); left out" in text


def test_changes_by_hand() -> None:
    survey = Survey(3)
    list(survey.observe([row_of("a b", "a b \n"), row_of("a b", "A, b"), row_of("a b c", "a b c d")]))
    assert survey.changes is not None
    assert (survey.changes.same, survey.changes.median) == (1, 0.0)
    lone = Survey(1)
    list(lone.observe([row_of("a b c", "a b c d")]))
    assert lone.changes is not None and lone.changes.median == pytest.approx(1 / 7)


# --- how it was set up


def test_the_settings_are_listed(text: str) -> None:
    for line in (
        "| rows requested | 5 |", "| instructions per call, for each feature | 10 |", "| seed | 3 |",
        "| rows of a reference before the next one | at most 7 |", "| filter `refusals` | `{}` |",
        '| filter `length` | `{"min_words": 1, "of": "response"}` |',
    ):  # fmt: skip
        assert f"\n{line}\n" in text, line
    assert "\n- `relevant_skills`: The skills that a good response takes" in text


def test_the_instructions_of_each_stage_are_shown_with_their_origin(text: str) -> None:
    fold = text.split("<details>")[1].split("</details>")[0]
    program = ReferenceLevelFeedback()
    assert fold.count("```\n") == 2 * 5 + 2
    for name, predictor in program.named_predictors():
        assert f"`{name}`: refed-dspy's own prompts" in fold and predictor.signature.instructions in fold
    assert "`response_generation`: refed-dspy's own prompts, with the author's guidance" in fold
    assert f"The guidance in it:\n\n```\n{GUIDANCE}\n```" in fold and fold.count("the author's guidance added") == 1


def at_cap(reached: str | None) -> dict[str, Any]:
    """Of an earlier version, which noted only the reason: None."""
    noted = {} if reached is None else {"reached": reached}
    return {"state": "at its cap", "reason": f"{reached}: 2 of 9 are kept, in /home/x/s.jsonl", "at": 1.0, **noted}


def changed(run: Synthesis, folder: Path, **meta: Any) -> SharedSettings:
    import sqlite3

    folder.mkdir()
    with Ledger.read(run.run_dir) as ledger, sqlite3.connect(folder / FILE) as db:
        ledger.db.backup(db)
        db.executemany("REPLACE INTO meta (name, value) VALUES (?, ?)", [(n, json.dumps(v)) for n, v in meta.items()])
    db.close()
    with Ledger.read(folder) as ledger:
        return run_facts(ledger).settings


def test_teachers_and_judge_are_listed_without_what_is_private(said: Said, run: Synthesis, tmp_path: Path) -> None:
    secret = {"api_base": "https://llm.corp.internal/v1", "api_key_env": "CORP_KEY"}
    config = {**secret, "temperature": 0.7, "max_tokens": 900, "params": {"top_p": 0.9, "extra_headers": {"x": "y"}}}
    teacher = {"model": "hosted_vllm//home/anna/big", "endpoint": "https://llm.corp.internal/v1", "config": config}
    judge = {"model": "openai/judge", "config": {**secret, "temperature": 0.0, "max_tokens": 50, "params": {}}}
    with Ledger.read(run.run_dir) as ledger:
        identity = ledger.meta("identity")
    settings = changed(
        run, tmp_path / "x",
        settings={
            "teacher": [judge], "teachers": {"response_generation": [teacher]}, "judge": judge,
            "judge_program": "/home/j",
        },
        identity={**identity, "filters": [
            ["overlap", {"against": "/home/anna/tests/bench.jsonl", "n": 13, "columns": None}],
            ["Own", {"class": "corp.secret.Own"}], ["judge", {"margin": 0.5, "prompts": {"a": "b"}}],
        ]},
        last_end=at_cap("max_cost $0.01 is reached after $0.0099"),
    )  # fmt: skip
    rows = dict(settings.rows)
    assert rows["teacher of response_generation"] == (
        "big: temperature 0.7, max_tokens 900, top_p 0.9, other parameters, not listed: 1"
    )
    assert rows["teacher of other stages"] == "openai/judge: temperature 0.0, max_tokens 50"
    said(rows["judge"])
    said([values for _, values in settings.filters])  # fmt: skip
    said(settings.stopped)
    for private in ("corp", "anna", "CORP_KEY", "/home", "extra_headers"):
        assert private not in repr(settings), private


def test_a_custom_lm_and_earlier_teachers(said: Said, run: Synthesis, tmp_path: Path) -> None:
    asked = [{"model": "openai/gpt-4o-mini", "temperature": "0.3", "max_tokens": "77"}, {"model": "x/y"}]
    rows = dict(changed(run, tmp_path / "x", asked_teachers=asked).rows)
    said(rows["teacher"])
    assert rows["teachers of earlier starts"].startswith("1;")
    assert "teachers of earlier starts" not in dict(changed(run, tmp_path / "y").rows)


@pytest.mark.parametrize(
    ("stopped", "reason"),
    [
        (at_cap("max_calls 5 is reached after 5 calls"), "(it ended at a cap: max\\_calls 5 is reached after 5 calls)"),
        (at_cap(None), "(it ended at a cap: not noted which)"),
        ({"state": "stopped", "reason": "/home/x", "at": 1.0}, "(it was still going on, or had ended short)"),
    ],
)
def test_why_it_ended_short(run: Synthesis, tmp_path: Path, stopped: dict[str, Any], reason: str) -> None:
    text = card_of(run, changed(run, tmp_path / "x", last_end=stopped), size=9).text()
    assert reason in text.split("## Known limits")[1] and "/home" not in text


# --- columns, an example, words that are explained


def test_every_column_of_the_data_has_its_line(made: SharedFolder, text: str) -> None:
    [file] = (made.folder / "data").iterdir()
    assert pq.read_schema(file).names == list(COLUMNS)
    assert re.findall(r"(?m)^\| `(\w+)` \| [^|]+ \|$", text.split("The first row")[0]) == list(COLUMNS)


def test_the_first_row_is_shown_cut(run: Synthesis, text: str) -> None:
    first = next(iter(run.samples.rows()))
    for name in ("instruction", "response", "improved_response"):
        assert f"`{name}`\n\n```\n{first[name]}\n```" in text
    long = Survey(1)
    list(long.observe([row_of("x" * 600, "y" * 601)]))
    cut = replace(card_of(run), survey=long).text()
    assert f"\n{'x' * 600}\n" in cut and f"\n{'y' * 600} …\n" in cut and "y" * 601 not in cut


def test_what_the_figures_mean(text: str) -> None:
    assert "\n- distinct-n is " in text and "\n- self-ROUGE-L is " in text


# --- licenses, terms, numbers


def test_a_license_that_is_not_needed_is_not_ignored_silently(run: Synthesis, tmp_path: Path) -> None:
    made = synthesize(None, "builtin", size=2, teacher=fake_lm(Writer()), run_dir=tmp_path / "run")
    notes = share(made.run_dir, tmp_path / "out", reference_license="CC0").notes
    text = (tmp_path / "out" / "README.md").read_text()
    assert [note for note in notes if note.startswith("reference_license=… was not used")]
    assert "CC0" not in text and "`builtin` are the references that come with the package" in text
    shared = share(run.run_dir, tmp_path / "own", reference_license="CC0")
    assert not [note for note in shared.notes if "was not used" in note]
    assert "come with the package" not in (shared.folder / "README.md").read_text()


def test_no_page_of_terms_is_named_for_a_private_endpoint(run: Synthesis) -> None:
    """A server of one's own may call any model by a provider's name."""
    assert terms_of("openai/gpt-4o-mini", "a private endpoint") == UNKNOWN
    assert terms_of("openai/gpt-4o-mini", "openai") == "<https://openai.com/policies>"
    stages = card_of(run).facts.stages
    private = [replace(stage, endpoint="a private endpoint") for stage in stages]
    assert "<https://openai.com/policies>" not in card_of(run, stages=private).text()
    assert "| <https://openai.com/policies> |" in card_of(run, stages=[*private[1:], stages[0]]).text()


def test_a_count_of_one_is_singular(run: Synthesis, text: str) -> None:
    assert "1 reference, 1 of them" in text and "1 reference gave rows: 5.\n" in text
    assert "1 reference behind 5 rows" in text and not re.search(r"\b1 (references|rows|pairs|calls|features)\b", text)
    survey = Survey(4)
    list(survey.observe([row_of("a", "b", reference=name) for name in "xxyy"]))
    assert "2 references gave rows: 2 each." in replace(card_of(run), survey=survey).text()


# --- text is data


def test_nothing_of_it_becomes_markup(run: Synthesis) -> None:
    hostile = SharedSettings(
        rows=[("teacher", HOSTILE)], filters=[(HOSTILE, json.dumps({HOSTILE: HOSTILE}))], features={HOSTILE: HOSTILE},
        stages=[StageText(HOSTILE, HOSTILE, "guided", HOSTILE, 2), StageText("b", f"{HOSTILE}\n````\n</details>")],
        stopped=HOSTILE,
    )  # fmt: skip
    survey = Survey(1)
    list(survey.observe([row_of(HOSTILE, f"---\n{HOSTILE}", HOSTILE, feature=HOSTILE)]))
    card = replace(card_of(run, hostile, size=9), survey=survey)
    text = card.text()
    page = rendered(text)
    assert DatasetCard(text).data.pretty_name == "Rows"
    for markup in ("<script", "<img", "<strong>", "<b>", "<em>", "49"):
        assert markup not in page.replace("149", ""), markup
    assert page.count("<details>") == page.count("</details>") == page.count("</summary>") == page.count("<h1>") == 1
    assert page.count("<table>") == text.count("\n| ---")
    clean = rendered(replace(card_of(run, size=9), survey=survey).text())
    assert re.findall(r"<h[1-6]>.*?</h", page) == re.findall(r"<h[1-6]>.*?</h", clean)
    assert "<hr" not in page and "2 examples shown with them" in page


def test_the_folders_above_are_made(made: SharedFolder) -> None:
    assert made.folder.parts[-3:] == ("a", "b", "out") and (made.folder / "README.md").is_file()
