"""No key and nothing private goes to the Hub: where it may hide, and what happens if it is there."""

from __future__ import annotations

import base64
import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest

from refed_dspy import synthesize
from refed_dspy.errors import InputError
from refed_dspy.plugins.share.manifest import FILE
from refed_dspy.plugins.share.push import push
from refed_dspy.plugins.share.secrets import origin_of, public_endpoint, public_model, public_source, texts_of
from refed_dspy.plugins.share.share import share
from tests.plugins.share.conftest import copy_run
from tests.plugins.share.test_push import KEY, TOKEN
from tests.support.command_line import refed
from tests.support.said import Said
from tests.support.scripted_engine import SAMPLE_FIELDS, Writer, fake_lm, references

# --- keys


def test_what_looks_like_a_key_is_reported_and_not_shown(said: Said, folder: Path, tmp_path: Path) -> None:
    dry = push(written(tmp_path, f"Set it to {KEY}."), "me/set")
    said(dry.warnings)
    assert KEY not in "\n".join(dry.lines())
    assert not push(folder, "me/set").warnings


def test_the_value_of_a_secret_variable_does_not_go(said: Said, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "an-odd-secret-7391")
    assert not push(folder, "me/set").leaks
    with (folder / "README.md").open("a") as card:
        card.write("an-odd-secret-7391\n")
    dry = push(folder, "me/set")
    said(dry.leaks)
    assert "an-odd-secret" not in "\n".join(dry.lines())
    with said.by(InputError):
        push(folder, "me/set", go=True)


def test_a_long_value_is_no_path(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as a signed token: a file name is never that long."""
    value = "x0" * 200
    monkeypatch.setenv("SESSION_TOKEN", value)
    with (folder / "README.md").open("a") as card:
        card.write(f"{value}\n")
    dry, sent = (refed("push", folder, "me/set", *go) for go in ((), ("--go",)))
    assert dry.exit_code == 0 and "SESSION_TOKEN" in dry.stdout
    assert (sent.exit_code, sent.stderr.count("\n")) == (2, 1) and value not in dry.output + sent.output


def test_a_variable_that_the_run_names_is_a_secret_whatever_it_is_called(
    said: Said, run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CORP_LLM", "an-odd-secret-7391")
    citation = tmp_path / "cite.bib"
    citation.write_text("an-odd-secret-7391")
    share(run_dir, tmp_path / "before", citation=citation)
    assert not push(tmp_path / "before", "me/set").leaks
    teacher = json.dumps([{"model": "corp/llm", "config": {"api_key_env": "CORP_LLM"}}])
    run = copy_run(
        run_dir,
        tmp_path / "run",
        f"UPDATE meta SET sum = NULL, value = json_set(value, '$.teacher', json('{teacher}')) WHERE name = 'settings'",
    )
    share(run, tmp_path / "out", citation=citation)
    said(push(tmp_path / "out", "me/set").leaks)


def test_a_value_that_is_no_text_is_no_trouble(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_SECRET", os.fsdecode(b"\xff\xfe-0123456789abcdef"))
    assert not push(folder, "me/set").leaks


def test_a_manifest_without_variables_of_keys(folder: Path) -> None:
    manifest = json.loads((folder / FILE).read_text())
    del manifest["key_variables"]
    (folder / FILE).write_text(json.dumps(manifest))
    assert not push(folder, "me/set").leaks


# --- where a key can hide


def written(tmp_path: Path, text: str, **options: Any) -> Path:
    """The folder of a shared run, one of whose responses is `text`."""
    texts = [json.dumps({**SAMPLE_FIELDS, "improved_response": response}) for response in (text, "Else.")]
    writer = Writer()
    writer.on_request = lambda request: texts.pop() if "improved_response" in writer.fields(request) else None
    synthesize(None, references(1), size=2, teacher=fake_lm(writer), run_dir=tmp_path / "run")
    share(tmp_path / "run", tmp_path / "out", **options)
    return tmp_path / "out"


def test_a_page_is_read_as_a_browser_reads_it(said: Said, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are packed in it; names are in it with HTML's escapes."""
    monkeypatch.setenv("SOME_PASSWORD", 'an "odd" <secret> \u00fc')
    monkeypatch.setenv("OTHER_PASSWORD", "one & another's")
    folder = written(tmp_path, f'Say {KEY} and an "odd" <secret> \u00fc.', report=True, name="of one & another's")
    made = push(folder, "me/set")
    about_page = [text for text in [*made.warnings, *made.leaks] if text.startswith("report.html")]
    said(about_page)


def test_a_page_whose_rows_cannot_be_read_is_refused(said: Said, folder: Path) -> None:
    (folder / "LICENSE.html").write_text('<script type="text/plain" id="rows">QUJD</script>')
    manifest = json.loads((folder / FILE).read_text())
    manifest["files"]["LICENSE.html"] = {"bytes": 0, "sha256": ""}
    (folder / FILE).write_text(json.dumps(manifest))
    with said.by(InputError):
        push(folder, "me/set")


def test_packed_rows_are_not_taken_for_a_key_by_chance(tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    packed = base64.b64encode(gzip.compress(b'{"rows": []}', mtime=0)).decode()
    page.write_text(f'<script type="text/plain" id="rows">{packed}</script>{packed}')
    assert list(texts_of(page)) == ["rows", packed, packed]


def test_a_card_is_read_without_its_escapes(said: Said, run_dir: Path, tmp_path: Path) -> None:
    share(run_dir, tmp_path / "out", reference_license=f"as {TOKEN} may")
    card = (tmp_path / "out" / "README.md").read_text()
    assert TOKEN not in card and TOKEN.replace("_", "\\_") in card
    said(push(tmp_path / "out", "me/set").warnings)


def test_the_croissant_file_is_read_without_its_escapes(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_PASSWORD", 'an "odd" secret')
    share(run_dir, tmp_path / "out", reference_license='an "odd" secret')
    leaks = push(tmp_path / "out", "me/set").leaks
    assert [leak.partition(":")[0] for leak in leaks] == ["README.md", "croissant.json"]


# --- what is private

NOWHERE = "not stated"


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
        ("anything", NOWHERE),
        ("", NOWHERE),
    ],
)
def test_sources(source: str, public: str) -> None:
    assert public_source(source) == public
    assert origin_of(source) == public.rpartition(" row ")[0] or public == NOWHERE
