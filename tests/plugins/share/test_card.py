"""The data set's card: true figures, each checked against runs with values known by hand, and YAML that the Hub
reads."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from huggingface_hub import DatasetCard

from refed_dspy import ReferenceLevelFeedback, synthesize
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.plugins.share.card import COLUMNS, UNKNOWN, Card, CardSettings, Config, terms_of
from refed_dspy.plugins.share.facts import SharedSettings, run_facts
from refed_dspy.plugins.share.secrets import PRIVATE
from refed_dspy.plugins.share.share import SharedFolder, share
from refed_dspy.plugins.share.survey import MAX_DRAWN, Copied, DrawnRow, Survey, count_copied
from refed_dspy.records import PICO, dollars
from refed_dspy.runs.result import Synthesis
from tests.plugins.share.conftest import GPT, copy_run
from tests.support.said import Said
from tests.support.scripted_engine import Writer, fake_lm, references

SOURCE = " ".join(f"word{at}" for at in range(20))
"""20 different words: 13 runs of eight."""
GUIDANCE = "Write for | readers who are in a hurry."
CITATION = "@misc{me,\n title = {```x}\n}"


class Copying(Writer):
    """Improves to the reference's own text in the first two rows, and leaves the third as it was."""

    improved = 0

    def write(self, request: Any) -> str:
        answer = json.loads(super().write(request))
        if "response" in answer:
            answer["response"] = "a plain answer of four"
        if "improved_response" in answer:
            self.improved += 1
            texts = [SOURCE, SOURCE, "a plain answer of four", "a plain one", "a plain one"]
            answer["improved_response"] = texts[self.improved - 1]
        return json.dumps(answer)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Synthesis:
    """Five rows of one reference: two copied, one left as it was, two of other words."""
    return synthesize(
        ReferenceLevelFeedback(guidance={"response_generation": GUIDANCE}),
        [{"instruction": "Say twenty words.", "response": SOURCE.upper()}],
        size=5, per_reference=7, seed=3, teacher=fake_lm(Copying(), GPT),
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


def sections(text: str) -> dict[str, str]:
    """Heading → what stands below it."""
    return {part.partition("\n")[0]: part.partition("\n")[2].strip() for part in re.split(r"(?m)^##+ ", text)}


def table_rows(text: str) -> list[list[str]]:
    return [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]


def card_of(run: Path, *, status: dict[str, Any] | None = None, stages: Any = None, **settings: Any) -> Card:
    """The card of two rows, whatever `run` holds."""
    with Ledger.read(run) as ledger:
        facts = run_facts(ledger)
    assert facts.account is not None
    account = replace(facts.account, status={**facts.status, **(status or {})})
    facts = replace(facts, account=account, stages=stages or facts.stages)
    survey = Survey(2)
    list(survey.observe([row_of("a b", "c d"), row_of("a b", "a b")]))
    return Card(CardSettings("Rows", **settings), facts, survey, [Config("default", "data/*", 2)], "0.1.0", ["en"])


def row_of(response: str, improved: str, reference: str = "r") -> dict[str, str]:
    """A run's row."""
    return {
        "reference": reference, "instruction": "Do.", "response": response, "improved_response": improved,
        "feature": "f",
    }  # fmt: skip


def surveyed(*rows: dict[str, str]) -> Survey:
    survey = Survey(len(rows))
    list(survey.observe(rows))
    return survey


# --- what it says


def test_what_is_known_of_the_rows_is_said_and_no_more(said: Said, made: SharedFolder, text: str) -> None:
    """Settings, copied text, what was left as it was (words changed of those of both: 1, 1, 0 and twice 4 of 8), pairs,
    counts of one in the singular, words that are explained."""
    shown = sections(text)
    settings = shown["Settings"].partition("<details>")[0]
    parts = ("References", "The teacher's terms", "In numbers", "Known limits")
    said({"": text.partition("| Column")[0], "Settings": settings, **{name: shown[name] for name in parts}})
    said(made.notes)
    assert not re.search(r"\b1 (references|rows|pairs|calls|features)\b", text)


def test_the_front_matter_is_what_the_hub_reads(filtered_run: Synthesis, tmp_path: Path) -> None:
    share(filtered_run.run_dir, tmp_path / "out", name=(name := "Short answers"), license="CC-BY-4.0", dropped=True)
    data = DatasetCard.load(tmp_path / "out" / "README.md").data
    assert (data.license, data.pretty_name, data.size_categories) == ("cc-by-4.0", name, ["n<1K"])
    assert data.task_categories == ["text-generation"] and "synthetic" in data.tags
    assert [config["config_name"] for config in data.configs] == ["default", "dropped"]
    assert data.configs[0]["default"] is True


@pytest.mark.parametrize(
    ("rows", "category"), [(999, "n<1K"), (1_000, "1K<n<10K"), (99_999, "10K<n<100K"), (1_000_000, "n>1M")]
)
def test_the_size_category(run: Synthesis, rows: int, category: str) -> None:
    card = replace(card_of(run.run_dir), configs=[Config("default", "data/*", rows)])
    assert DatasetCard(card.text()).data.size_categories == [category]


def test_the_figures_are_the_ledgers(filtered_run: Synthesis, tmp_path: Path) -> None:
    notes = share(filtered_run.run_dir, tmp_path / "out").notes
    text = (tmp_path / "out" / "README.md").read_text()
    shown, rows = sections(text), table_rows(text)
    counts = filtered_run.status["filters"][-1]
    kept, dropped = counts["kept"], counts["dropped"]
    assert ["`random`", str(kept), str(dropped)] in [row[:3] for row in rows]
    assert str(kept + dropped) in shown["In numbers"], "it looks at instructions, as soon as they are written"
    for stage, use in filtered_run.usage.items():
        assert [row[3:] for row in rows if row[0] == f"`{stage}`"] == [["openai", str(use["answered"])]]
    cost, calls, tokens = (
        sum(use[name] or 0 for use in filtered_run.usage.values()) for name in ("cost", "calls", "prompt_tokens")
    )
    assert cost > 0 and f" \\{dollars(cost * PICO)}, " in shown["Cost"]
    assert f"\n{calls} " in shown["Cost"] and f" {tokens:,} " in shown["Cost"]
    assert ["`references`", "3", "not stated"] in rows
    assert len(notes) == 2, "nothing was copied, so nothing is noted of it"


def test_an_unknown_price_and_an_unfinished_run_are_stated(said: Said, filtered_run: Synthesis, tmp_path: Path) -> None:
    copy = copy_run(
        filtered_run, tmp_path / "copy", "UPDATE calls SET cost = NULL",
        "REPLACE INTO meta (name, value) VALUES ('size', '500'), ('price_source', 'null')",
    )  # fmt: skip
    shown = sections(card_of(copy).text())
    said((shown["In numbers"].splitlines()[-1], shown["Cost"], shown["Known limits"].splitlines()[-1]))


def test_licenses_are_stated_and_never_invented(said: Said, run: Synthesis, tmp_path: Path) -> None:
    none = card_of(run.run_dir).text()
    assert "license" not in DatasetCard(none).data.to_dict()
    stated = card_of(run.run_dir, license="mit", reference_license="CC BY-SA 4.0 | ours").text()
    said([(sections(text)["License"], table_rows(sections(text)["References"])) for text in (none, stated)])
    own = "You may read it.\n"
    (tmp_path / "own.txt").write_text(own)
    share(run.run_dir, tmp_path / "out", license=tmp_path / "own.txt")
    data = DatasetCard.load(tmp_path / "out" / "README.md").data
    assert (data.license, data.license_link) == ("other", "LICENSE")
    assert (tmp_path / "out" / "LICENSE").read_text() == own


def test_the_packages_references_have_its_license_and_need_no_other(said: Said, tmp_path: Path) -> None:
    synthesize(None, "builtin", size=2, teacher=fake_lm(Writer()), run_dir=tmp_path / "run")
    notes = share(tmp_path / "run", tmp_path / "out", reference_license="CC0").notes
    text = (tmp_path / "out" / "README.md").read_text()
    said((sections(text)["References"], notes))
    assert "CC0" not in text


def test_citations(run: Synthesis) -> None:
    text = card_of(run.run_dir, citation=CITATION).text()
    assert "arXiv:2502.04511" in text and f"````bibtex\n{CITATION}\n````" in text


def test_the_language_of_the_rows_is_recognised() -> None:
    survey = Survey(2)
    german = "Die Katze liegt seit heute Morgen auf dem warmen Fensterbrett und schaut den Vögeln im Garten zu."
    survey.drawn += [DrawnRow("r", "Was tut sie?", "", german)] * 2
    assert survey.languages() == ["de"]
    cities = "Madrid, Barcelona, Valencia, Sevilla, Zaragoza, Málaga"
    survey.drawn[:] = [DrawnRow("r", "?", "", text) for text in ("42", cities)]
    assert survey.languages() == []


def test_every_column_of_the_data_has_its_line(made: SharedFolder, text: str) -> None:
    [file] = (made.folder / "data").iterdir()
    assert pq.read_schema(file).names == list(COLUMNS)
    assert [row[0].strip("`") for row in table_rows(text.partition("\n## ")[0])[2:]] == list(COLUMNS)
    assert made.folder.parts[-3:] == ("a", "b", "out"), "the folders above are made"


def test_the_first_row_is_shown_cut(run: Synthesis, text: str) -> None:
    first = next(iter(run.samples.rows()))
    for name in ("instruction", "response", "improved_response"):
        assert f"`{name}`\n\n```\n{first[name]}\n```" in text
    card = card_of(run.run_dir)
    none = replace(surveyed(row_of("a", "b")), first=None)
    assert "`response`\n\n```" not in replace(card, survey=none).text()
    cut = replace(card, survey=surveyed(row_of("x" * 600, "y" * 601))).text()
    assert f"\n{'x' * 600}\n" in cut and f"\n{'y' * 600} …\n" in cut and "y" * 601 not in cut


def test_the_instructions_of_each_stage_are_shown_with_their_origin(said: Said, text: str) -> None:
    fold = text.split("<details>")[1].split("</details>")[0]
    for _, predictor in ReferenceLevelFeedback().named_predictors():
        assert f"```\n{predictor.signature.instructions}" in fold
    said([line for line in fold.splitlines() if line.startswith("`") and ": " in line])
    assert f"\n\n```\n{GUIDANCE}\n```" in fold and fold.count("```\n") == 2 * 5 + 2


# --- text of the references, what the improvement changed


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


def test_no_more_rows_are_looked_at_than_are_drawn() -> None:
    survey = Survey(MAX_DRAWN + 1, {"r": [SOURCE]})
    rows = [row_of(SOURCE, SOURCE)] * (MAX_DRAWN + 1)
    assert list(survey.observe(rows)) == rows
    assert survey.copied.rows == len(survey.drawn) == MAX_DRAWN


def test_changes_and_rows_of_each_reference_by_hand() -> None:
    changes = surveyed(row_of("a b", "a b \n"), row_of("a b", "A, b"), row_of("a b c", "a b c d")).changes
    assert changes is not None and (changes.same, changes.median) == (1, 0.0)
    lone = surveyed(row_of("a b c", "a b c d")).changes
    assert lone is not None and lone.median == pytest.approx(1 / 7)
    assert surveyed(*(row_of("a", "b", name) for name in "xxxyy")).rows_per_reference() == (2, 2.5, 3)


def test_a_program_that_improves_nothing_makes_no_pairs(tmp_path: Path, text: str) -> None:
    lm = fake_lm(Writer())
    synthesize(None, references(1), size=3, teacher=lm, run_dir=tmp_path / "run", method="instruction-only")
    share(tmp_path / "run", tmp_path / "shared")
    pairs = "`improved_response` over"
    assert pairs in text and pairs not in (tmp_path / "shared" / "README.md").read_text()


def test_it_says_that_rows_repeat_a_system_prompt(said: Said, tmp_path: Path) -> None:
    under = [{**each, "system": "Be brief."} for each in references(1)]
    synthesize(None, under, size=1, teacher=fake_lm(Writer()), run_dir=tmp_path / "run")
    share(tmp_path / "run", tmp_path / "shared")
    said(sections((tmp_path / "shared" / "README.md").read_text())["References"])


# --- how it was set up, and who answered


def at_cap(reached: str | None) -> dict[str, Any]:
    """Of an earlier version, which noted only the reason: None."""
    noted = {} if reached is None else {"reached": reached}
    return {"state": "at its cap", "reason": f"{reached}: 2 of 9 are kept, in /home/x/s.jsonl", "at": 1.0, **noted}


def changed(run: Synthesis, folder: Path, **meta: Any) -> Path:
    """A copy of the run in `folder`, with other facts about it."""
    copy_run(run, folder)
    with Ledger.create(folder) as ledger:
        ledger.set_meta(**meta)
    return folder


def settings_of(folder: Path) -> SharedSettings:
    with Ledger.read(folder) as ledger:
        return run_facts(ledger).settings


def test_teachers_and_judge_are_listed_without_what_is_private(said: Said, run: Synthesis, tmp_path: Path) -> None:
    secret = {"api_base": "https://llm.corp.internal/v1", "api_key_env": "CORP_KEY"}
    config = {**secret, "temperature": 0.7, "max_tokens": 900, "params": {"top_p": 0.9, "extra_headers": {"x": "y"}}}
    teacher = {"model": "hosted_vllm//home/anna/big", "endpoint": "https://llm.corp.internal/v1", "config": config}
    judge = {"model": "openai/judge", "config": {**secret, "temperature": 0.0, "max_tokens": 50, "params": {}}}
    with Ledger.read(run.run_dir) as ledger:
        identity = ledger.meta("identity")
    settings = settings_of(changed(
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
    ))  # fmt: skip
    said((settings.rows, settings.filters, settings.stopped))
    for private in ("corp", "anna", "CORP_KEY", "/home", "extra_headers"):
        assert private not in repr(settings), private


def test_a_custom_lm_and_earlier_teachers(said: Said, run: Synthesis, tmp_path: Path) -> None:
    asked = [{"model": GPT, "temperature": "0.3", "max_tokens": "77"}, {"model": "x/y"}]
    rows, before = (
        {name: value for name, value in settings_of(folder).rows if "teacher" in name}
        for folder in (changed(run, tmp_path / "x", asked_teachers=asked), run.run_dir)
    )
    said((rows, before))


def test_why_it_ended_short(said: Said, run: Synthesis, tmp_path: Path) -> None:
    ends = {
        "noted": at_cap("max_calls 5 is reached after 5 calls"),
        "not noted": at_cap(None),
        "stopped": {"state": "stopped", "reason": "/home/x", "at": 1.0},
    }
    cards = {n: card_of(changed(run, tmp_path / n, last_end=e), status={"size": 9}).text() for n, e in ends.items()}
    said({name: sections(text)["Known limits"].splitlines()[-1] for name, text in cards.items()})
    assert not [name for name, text in cards.items() if "/home" in text]


@pytest.mark.parametrize(
    ("meta", "teacher"),
    [
        ({"note": None}, GPT),
        ({"settings": {"teacher": [{"model": "a"}, {"model": "b"}]}}, "not known"),
        ({"asked_teachers": [{"model": "a"}, {"model": "b"}]}, "not known"),
    ],
)
def test_an_answer_without_a_call_is_the_only_teachers(
    run: Synthesis, tmp_path: Path, meta: dict[str, Any], teacher: str
) -> None:
    """Where several were asked, it may be from any of them."""
    folder = changed(run, tmp_path / "copy", **meta)
    copy_run(folder, tmp_path / "again", "DELETE FROM calls WHERE stage = 'response_generation'")
    with Ledger.read(tmp_path / "again") as ledger:
        models = {stage.stage: stage.model for stage in run_facts(ledger).stages}
    assert models.pop("response_generation") == teacher
    assert set(models.values()) == {GPT}


@pytest.mark.parametrize(
    ("model", "terms"),
    [
        (GPT, "openai.com/"),
        ("openrouter/openai/o3-mini", "openai.com/"),
        ("anthropic/claude-haiku-4-5", "anthropic.com/"),
        ("gemini/gemini-2.5-flash", "ai.google.dev/"),
        ("Qwen2.5-Coder-1.5B-Instruct Q4_K_M", "Apache-2.0"),
        ("qwen2.5-coder-1.5b-instruct-q4_k_m.gguf", "Apache-2.0"),
        ("SmolLM2-135M-Instruct Q4_1", "Apache-2.0"),
        ("openai/gpt-oss-20b", UNKNOWN),
        ("sim/sim-model", UNKNOWN),
        ("deepseek/deepseek-r1-distill-llama-8b", UNKNOWN),
    ],
)
def test_terms_of_models(model: str, terms: str) -> None:
    assert terms in terms_of(model)


def test_no_page_of_terms_is_named_for_a_private_endpoint(run: Synthesis) -> None:
    """A server of one's own may call any model by a provider's name."""
    page = "<https://openai.com/policies>"
    assert terms_of(GPT, PRIVATE) == UNKNOWN and terms_of(GPT, "openai") == page
    stages = card_of(run.run_dir).facts.stages
    private = [replace(stage, endpoint=PRIVATE) for stage in stages]
    assert page not in card_of(run.run_dir, stages=private).text()
    assert page in card_of(run.run_dir, stages=[*private[1:], stages[0]]).text()
