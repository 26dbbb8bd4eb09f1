"""The data set's card: true figures, YAML that the Hub reads, and text that stays text."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import DatasetCard
from markdown_it import MarkdownIt

from refed_dspy import synthesize
from refed_dspy.ledger.connection import FILE
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.plugins.share.card import UNKNOWN, Card, CardSettings, Config, block, code, plain, terms_of
from refed_dspy.plugins.share.facts import run_facts
from refed_dspy.plugins.share.secrets import origin_of, public_endpoint, public_model, public_source
from refed_dspy.plugins.share.share import share
from refed_dspy.plugins.share.survey import DrawnRow, Survey
from refed_dspy.records import PICO, dollars
from refed_dspy.runs.result import Synthesis
from tests.support.said import Said
from tests.support.scripted_engine import Writer, fake_lm, references

HOSTILE = "x</td><script>alert(1)</script> | `` ` **b** [l](javascript:x) ![i](http://x.example/p) {{ 7*7 }}\n---\n# H"
MARKDOWN = MarkdownIt("commonmark").enable(["table", "strikethrough"])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Synthesis:
    folder = tmp_path_factory.mktemp("run")
    teacher = fake_lm(Writer(), "openai/gpt-4o-mini")
    filters = [{"random": {"share": 0.5}}]
    return synthesize(None, references(3), size=8, run_dir=folder, teacher=teacher, filters=filters)


def card_of(run_dir: Path, **settings: Any) -> Card:
    with Ledger.read(run_dir) as ledger:
        facts = run_facts(ledger)
    survey = Survey(2)
    survey.features.update({"subject_areas": 2})
    survey.references.update({"r1": 2})
    survey.drawn += [DrawnRow("r", "Ask a thing.", "", "Answer it.")] * 2
    return Card(CardSettings("Rows", **settings), facts, survey, [Config("default", "data/*", 2)], "0.1.0", ["en"])


def rendered(text: str) -> str:
    return str(MARKDOWN.render(text.split("\n---\n", 1)[1]))


# --- what it says


def test_the_front_matter_is_what_the_hub_reads(said: Said, run: Synthesis, tmp_path: Path) -> None:
    share(run.run_dir, tmp_path / "out", name="Short answers", license="CC-BY-4.0", dropped=True)
    data = DatasetCard.load(tmp_path / "out" / "README.md").data
    said((data.license, data.pretty_name, data.size_categories))
    assert data.task_categories == ["text-generation"] and "synthetic" in data.tags
    assert [config["config_name"] for config in data.configs] == ["default", "dropped"]
    assert data.configs[0]["default"] is True


@pytest.mark.parametrize(
    ("rows", "category"), [(999, "n<1K"), (1_000, "1K<n<10K"), (99_999, "10K<n<100K"), (1_000_000, "n>1M")]
)
def test_the_size_category(run: Synthesis, rows: int, category: str) -> None:
    card = replace(card_of(run.run_dir), configs=[Config("default", "data/*", rows)])
    assert DatasetCard(card.text()).data.size_categories == [category]


def test_the_figures_are_the_ledgers(run: Synthesis, tmp_path: Path) -> None:
    share(run.run_dir, tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    counts = run.status["filters"][-1]
    new = counts["kept"] + counts["dropped"]  # it looks at instructions, as soon as they are written
    assert text.split("---\n")[2].startswith("\n# out\n\n8 pairs ")
    assert f"| `random` | {counts['kept']} | {counts['dropped']} | {counts['dropped']} not drawn |" in text
    assert f"{new} new instructions were written" in text
    for stage, use in run.usage.items():
        assert f"| `{stage}` |" in text and f"| openai | {use['answered']} |" in text
    cost = sum(use["cost"] or 0 for use in run.usage.values())
    calls = sum(use["calls"] for use in run.usage.values())
    tokens = sum(use["prompt_tokens"] for use in run.usage.values())
    assert (
        cost > 0
        and f"Dollars: \\{dollars(cost * PICO)}, " in text
        and f"\n{calls} calls, {tokens:,} tokens read" in text
    )
    assert "3 references, " in text and "| `references` | 3 | not stated |" in text


def test_an_unknown_price_and_an_unfinished_run_are_stated(run: Synthesis, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    with Ledger.read(run.run_dir) as ledger, sqlite3.connect(copy / FILE) as db:
        ledger.db.backup(db)
        db.execute("UPDATE calls SET cost = NULL")
        db.execute("REPLACE INTO meta (name, value) VALUES ('size', '500'), ('price_source', 'null')")
    db.close()
    text = card_of(copy).text()
    calls = sum(use["calls"] for use in run.usage.values())
    assert f"Dollars: unknown.\nThe price of {calls} calls is not known" in text
    assert "500 were asked for" in text
    assert "had not reached its size" in text


def test_licenses_are_stated_and_never_invented(run: Synthesis, tmp_path: Path) -> None:
    none = card_of(run.run_dir).text()
    assert "license" not in DatasetCard(none).data.to_dict() and "None is stated" in none
    assert "| `references` | 3 | not stated |" in none
    stated = card_of(run.run_dir, license="mit", reference_license="CC BY-SA 4.0 | ours").text()
    assert "## License\n\n`mit`" in stated and "| `references` | 3 | CC BY-SA 4.0 \\| ours |" in stated
    (tmp_path / "own.txt").write_text("You may read it.\n")
    share(run.run_dir, tmp_path / "out", license=tmp_path / "own.txt")
    data = DatasetCard.load(tmp_path / "out" / "README.md").data
    assert (data.license, data.license_link) == ("other", "LICENSE")
    assert (tmp_path / "out" / "LICENSE").read_text() == "You may read it.\n"


def test_the_packages_references_have_its_license(tmp_path: Path) -> None:
    made = synthesize(None, "builtin", size=2, teacher=fake_lm(Writer()), run_dir=tmp_path / "run")
    assert made.complete
    text = card_of(tmp_path / "run").text()
    assert "| `builtin` |" in text and "Apache-2.0, that of refed-dspy" in text


def test_citations(run: Synthesis) -> None:
    text = card_of(run.run_dir, citation="@misc{me,\n title = {```x}\n}").text()
    assert "arXiv:2502.04511" in text and "````bibtex\n@misc{me,\n title = {```x}\n}\n````" in text


def test_the_language_of_the_rows_is_recognised(tmp_path: Path) -> None:
    survey = Survey(2)
    german = "Die Katze liegt seit heute Morgen auf dem warmen Fensterbrett und schaut den Vögeln im Garten zu."
    survey.drawn += [DrawnRow("r", "Was tut sie?", "", german)] * 2
    assert survey.languages() == ["de"]
    cities = "Madrid, Barcelona, Valencia, Sevilla, Zaragoza, Málaga"
    survey.drawn[:] = [DrawnRow("r", "?", "", text) for text in ("42", cities)]
    assert survey.languages() == []


# --- who answered


@pytest.mark.parametrize(
    ("meta", "teacher"),
    [
        ("('note', 'null')", "openai/gpt-4o-mini"),
        ('(\'settings\', \'{"teacher": [{"model": "a"}, {"model": "b"}]}\')', "not known"),
        ("""('asked_teachers', '[{"model": "a"}, {"model": "b"}]')""", "not known"),
    ],
)
def test_an_answer_without_a_call_is_the_only_teachers(run: Synthesis, tmp_path: Path, meta: str, teacher: str) -> None:
    """Where several were asked, it may be from any of them."""
    copy = tmp_path / "copy"
    copy.mkdir()
    with Ledger.read(run.run_dir) as ledger, sqlite3.connect(copy / FILE) as db:
        ledger.db.backup(db)
        db.execute("DELETE FROM calls WHERE stage = 'response_generation'")
        db.execute(f"REPLACE INTO meta (name, value) VALUES {meta}")
    db.close()
    with Ledger.read(copy) as ledger:
        models = {stage.stage: stage.model for stage in run_facts(ledger).stages}
    assert models.pop("response_generation") == teacher
    assert set(models.values()) == {"openai/gpt-4o-mini"}


# --- terms


@pytest.mark.parametrize(
    ("model", "terms"),
    [
        ("openai/gpt-4o-mini", "openai.com/"),
        ("openrouter/openai/o3-mini", "openai.com/"),
        ("anthropic/claude-haiku-4-5", "anthropic.com/"),
        ("gemini/gemini-2.5-flash", "ai.google.dev/"),
        ("Qwen2.5-Coder-1.5B-Instruct Q4_K_M", "Apache-2.0 license"),
        ("qwen2.5-coder-1.5b-instruct-q4_k_m.gguf", "Apache-2.0 license"),
        ("SmolLM2-135M-Instruct Q4_1", "Apache-2.0 license"),
        ("openai/gpt-oss-20b", UNKNOWN),
        ("sim/sim-model", UNKNOWN),
        ("deepseek/deepseek-r1-distill-llama-8b", UNKNOWN),
    ],
)
def test_terms_of_models(model: str, terms: str) -> None:
    assert terms in terms_of(model)


# --- what is private


@pytest.mark.parametrize(
    ("endpoint", "public"),
    [
        ("https://api.openai.com/v1", "api.openai.com"),
        ("openai", "openai"),
        ("embedded:Qwen", "beside the run, on its machine"),
        *((private, "a private endpoint") for private in (
            "http://10.0.0.7:8000/v1", "https://api.openai.com.evil.corp/v1", "https://acme.openai.azure.com", "",
            "llm.corp.internal", "http://[::1", "HOST", "https://gateway.ai.example/v1/9f8e7d/openai",
        )),
    ],
)  # fmt: skip
def test_endpoints(endpoint: str, public: str) -> None:
    assert public_endpoint(endpoint) == public


@pytest.mark.parametrize(
    ("model", "public"),
    [
        ("openai/gpt-4o-mini", "openai/gpt-4o-mini"),
        ("openrouter/qwen/qwen-2.5-72b", "openrouter/qwen/qwen-2.5-72b"),
        ("hosted_vllm//home/somebody/models/big", "big"),
        ("/home/somebody/models/big", "big"),
        ("gguf/C:\\Users\\somebody\\m.gguf", "m.gguf"),
        ("gguf/../models/m.gguf", "m.gguf"),
        ("vllm/data/models/m.gguf", "m.gguf"),
        ("vllm/~/m", "m"),
        ("hosted_vllm/data/anna/secret/llama", "llama"),
        ("openai/home/anna/models/big", "big"),
        ("bedrock/arn:aws:bedrock:us-east-1:123456789012:inference-profile/abc", "bedrock/abc"),
        (
            "bedrock/x/arn:aws:bedrock:us-east-1::foundation-model/anthropic.claude-v2:1",
            "bedrock/anthropic.claude-v2:1",
        ),
        ("arn:aws:sagemaker:us-east-1:123456789012:endpoint/mine", "mine"),
        ("ft:gpt-4o-mini:acme-corp:secret:a1", "gpt-4o-mini, fine-tuned"),
        ("openai/ft:gpt-4o-mini-2024-07-18:acme-corp::a1", "openai/gpt-4o-mini-2024-07-18, fine-tuned"),
        ("proxy/home/anna/ft:gpt-4o:acme-corp::a1", "gpt-4o, fine-tuned"),
        ("openai/gift:wrapped", "openai/gift:wrapped"),
        ("", "not known"),
    ],
)
def test_models(model: str, public: str) -> None:
    assert public_model(model) == public


@pytest.mark.parametrize(
    ("source", "public"),
    [
        ("builtin row 3", "builtin row 3"),
        ("references row 3", "references row 3"),
        ("GAIR/lima row 12", "GAIR/lima row 12"),
        ("GAIR/lima:test row 12", "GAIR/lima:test row 12"),
        ("/home/somebody/a row 7/refs.jsonl row 3", "refs.jsonl row 3"),
        ("C:\\Users\\somebody\\refs.csv row 3", "refs.csv row 3"),
        ("my secret note row 3", "not stated row 3"),
        ("/srv/corp/refs row 3", "not stated row 3"),
        ("anything", "not stated"),
        ("", "not stated"),
    ],
)
def test_sources(source: str, public: str) -> None:
    assert public_source(source) == public
    assert origin_of(source) == public.rpartition(" row ")[0] or public == "not stated"


# --- text is data


def test_hostile_text_is_text_wherever_it_stands(tmp_path: Path) -> None:
    """In the names of filters, files, models, licenses and the data set, and in the reasons of filters."""

    class Odd:
        name, of_instruction = "odd|<b>", True

        def check(self, row: Any) -> Any:
            from refed_dspy.filters.base import Decision

            return Decision("Task 1:" not in row.instruction, HOSTILE if "Task 1:" in row.instruction else "", None, "")

        def remember(self, row: Any) -> None:
            pass

    rows = [{**reference, "source": "<img src=x onerror=alert(1)>|.jsonl row 1"} for reference in references(1)]
    lm = fake_lm(Writer(), f"fake/{HOSTILE}")
    synthesize(None, rows, size=3, teacher=lm, run_dir=tmp_path / "run", filters=[Odd()])
    citation = written(tmp_path / "c.bib")
    share(tmp_path / "run", tmp_path / "out", name=HOSTILE, reference_license=HOSTILE, citation=citation)
    text = (tmp_path / "out" / "README.md").read_text()
    card = DatasetCard(text)
    assert card.data.pretty_name.startswith("x</td><script>") and "\n" not in card.data.pretty_name
    page = rendered(text)
    for markup in ("<script", "<img", "<b>", "<strong>", 'javascript:x"', "<a "):
        assert markup not in page, markup
    assert (
        page.count("<h1>") == 1
        and "{{ 7*7 }}" in page
        and " 49 " not in page.replace("<", " ").replace(">", " ").split("In numbers")[0]
    )
    rows_of = [line for line in text.splitlines() if line.startswith("|")]
    assert "&lt;script&gt;alert(1)" in page and all(line.endswith("|") for line in rows_of)
    assert page.count("<table>") == text.count("\n| ---")


def written(path: Path) -> Path:
    path.write_text(f"```\n<script>alert(2)</script>\n~~~\n{HOSTILE}")
    return path


@pytest.mark.parametrize(
    "text", [HOSTILE, "`", "``a`", "a|b", "\\|", "www.evil.example me@evil.example https://evil.example", "&lt; &amp;"]
)
def test_text_renders_as_itself(text: str) -> None:
    flat = " ".join(text.split())
    for markdown in (plain(text), code(text)):
        tokens = MARKDOWN.parse(f"| a |\n| --- |\n| {markdown} |\n")
        cells = [token for token in tokens if token.type == "inline"]
        assert len(cells) == 2
        children = cells[1].children or []
        assert {child.type for child in children} <= {"text", "text_special", "code_inline"}
        assert "".join(child.content for child in children).strip() == flat
    assert not any(
        link in plain(text) for link in ("p://", "s://", "www.", "e@")
    )  # nor what some renderers make links of
    assert MarkdownIt().parse(str(block(text)))[0].content.strip() == "\n".join(
        line.strip("\n") for line in text.strip().splitlines()
    )
