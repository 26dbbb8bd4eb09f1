"""The site: what its pages say can be typed, and comes out as they say."""

from __future__ import annotations

import html
import inspect
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import typer.main
import yaml
from sybil.example import SybilFailure

import refed_dspy
from benchmarks.simulated import SimulatedTeacher
from refed_dspy.cli.main import app
from refed_dspy.config import filters as filter_settings
from refed_dspy.config import jobs as job_settings
from refed_dspy.config import teacher as settings
from refed_dspy.config.base import Settings
from refed_dspy.config.compile import CompileConfig
from refed_dspy.config.environment import read_variables
from refed_dspy.config.jobs import FilterRunConfig
from refed_dspy.config.loading import load_config
from refed_dspy.config.run import RunConfig
from refed_dspy.errors import ConfigError
from refed_dspy.plugins.compare.settings import CompareConfig
from refed_dspy.plugins.evaluate import settings as evaluation_settings
from refed_dspy.plugins.evaluate.settings import AlpacaEvalConfig, AnswersConfig, ArenaHardConfig, IFEvalConfig
from refed_dspy.plugins.judge.settings import JudgeTrainingConfig
from refed_dspy.plugins.metrics.settings import StatsConfig
from refed_dspy.plugins.recycle.settings import RecycleConfig
from tests.support import docs_running as running
from tests.support.said import Said

ROOT = running.DOCS.parent
KINDS: dict[str, type[Settings]] = {
    "run": RunConfig, "compile": CompileConfig, "compare": CompareConfig, "filters": FilterRunConfig,
    "recycle": RecycleConfig, "stats": StatsConfig, "answers": AnswersConfig, "alpaca": AlpacaEvalConfig,
    "arena": ArenaHardConfig, "ifeval": IFEvalConfig, "train": JudgeTrainingConfig,
}  # fmt: skip
"""What a settings file holds, by the first word of its name."""
GENERATED = re.compile(r"^<!-- generated: settings (\w+) -->$", re.MULTILINE)
PAGES = [pytest.param(path, id=running.page_name(path)) for path in running.pages()]


@pytest.fixture(scope="module")
def refed() -> Any:
    """The command line, as typer has it."""
    return typer.main.get_command(app)


@pytest.mark.parametrize("path", PAGES)
def test_every_command_option_and_settings_file_there_is(path: Path, refed: Any, tmp_path: Path) -> None:
    unknown = [running.unknown_option(refed, words) for words in running.refed_commands(path)]
    assert not [message for message in unknown if message]
    assert not [block for block in running.blocks(path) if block.language not in running.LANGUAGES]
    assert not running.unfenced_commands(path)
    for block in running.blocks(path):
        if block.language in {"yaml", "yml"}:
            assert block.title, f"{path.name}:{block.line}: settings need a title, the file's name"
            load(block, tmp_path)


def load(block: running.Block, folder: Path) -> None:
    """Raises ConfigError for a key that does not exist, KeyError for a file whose name does not say what it holds."""
    file = folder / block.title
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(block.source, encoding="utf-8")
    if not running.is_teacher_file(block.title):
        load_config(KINDS[file.stem.split("-")[0]], file, {})
    else:
        load_config(RunConfig, None, {}, teacher=str(file))


@contextmanager
def working_in(folder: Path, **variables: str) -> Iterator[None]:
    """`folder` is the working folder, with the examples in it as in a clone; `refed` is on the path."""
    shutil.copytree(ROOT / "examples", folder / "examples", ignore=shutil.ignore_patterns("__pycache__"))
    common = {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "REFED_TRACK": "false",
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
        "HF_HUB_OFFLINE": "1",
        "COLUMNS": "140",
        "PYTHONUNBUFFERED": "1",
    }
    with patch.dict(os.environ, common | variables):
        yield


@pytest.mark.slow
@pytest.mark.parametrize("path", PAGES)
def test_a_page_runs(path: Path, server: SimulatedTeacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A provider's model is asked at the simulated server, and costs what it costs at its own address."""
    server.control(latency=0.01, sigma=0.3)
    monkeypatch.chdir(tmp_path)
    roles = ("TEACHER", "JUDGE")
    address = {f"REFED_{role}__API_BASE": server.base_url for role in roles}
    price = {f"REFED_{role}__PRICE": "openai/gpt-4o-mini" for role in roles}
    with working_in(tmp_path, **address, **price):
        running.run_page(path, tmp_path, server.base_url)


@pytest.mark.live
def test_the_tutorial_runs_on_a_real_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to where it goes to a provider; with the tiny model's weights, whose text is nonsense."""
    monkeypatch.chdir(tmp_path)
    with working_in(tmp_path, REFED_TEACHER__MODEL="embedded-smoke", REFED_TEACHER__MAX_TOKENS="300"):
        assert running.run_page(running.DOCS / "tutorial.md", tmp_path, until="openai/") >= 5


def page(folder: Path, text: str) -> Path:
    path = folder / "page.md"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_page_that_lies_is_told_with_its_line(said: Said, tmp_path: Path) -> None:
    lies = {
        "a wrong output": "# A page\n\n```console\n$ echo 12 apples\n7 apples\n$ echo 12 apples\n12 pears\n```\n",
        "a command that fails": "```console\n$ exit 3\n```\n",
        "what Python prints": '```python\nprint("one")\n```\n\n```text title="prints"\ntwo\n```\n',
        "what nothing runs": "```ruby\nputs 1\n```\n",
    }
    for text in lies.values():
        with said.by(SybilFailure):
            running.run_page(page(tmp_path, text), tmp_path)
    with said.by(ValueError):
        running.blocks(page(tmp_path, "<!-- skip: next -->\n```console\n$ true\n```\n"))
    indented = "Type\n\n    refed status DIR\n\n    words\n\n```console\n$ true\n    refed no\n```\n"
    said(running.unfenced_commands(page(tmp_path, indented)))


RUNS = {
    "figures that differ, and an ellipsis":
        (1, "```console\n$ printf 'took 3.2 s\\na\\nb\\nend 4\\n'\ntook 17 s\n…\nend 1,024\n```\n"),
    "what Python prints": (2, '```python\nprint("one")\n```\n\n```text title="prints"\none\n```\n'),
    "a skipped block": (0, '<!-- skip: next "a key" -->\n```console\n$ exit 3\n```\n'),
    "hidden commands and titled files": (
        3, '<!-- hidden: bash\necho one > a\n-->\n```text title="b"\ntwo\n```\n```console\n$ cat a b\none\ntwo\n```\n',
    ),
    "up to a word": (
        2, "<!-- hidden: bash\necho until/x > a\n-->\n```console\n$ cat a\n```\n```console\n$ exit until/b\n```\n",
    ),
}  # fmt: skip
"""A page → how many of its blocks run."""


@pytest.mark.parametrize("what", RUNS)
def test_a_page_is_run_as_its_reader_would(tmp_path: Path, what: str) -> None:
    count, text = RUNS[what]
    assert running.run_page(page(tmp_path, text), tmp_path, until="until/") == count


def test_a_teacher_file_without_an_address_gets_the_servers(tmp_path: Path) -> None:
    text = '```yaml title="teacher.yaml"\nmodel: openai/one\n```\n```yaml title="run.yaml"\nsize: 3\n```\n'
    running.run_page(page(tmp_path, text), tmp_path, "http://127.0.0.1:1/v1")
    written = yaml.safe_load((tmp_path / "teacher.yaml").read_text())
    assert written == {"model": "openai/one", "api_base": "http://127.0.0.1:1/v1", "price": "openai/one"}
    assert (tmp_path / "run.yaml").read_text() == "size: 3\n"


def test_an_option_or_a_command_that_there_is_not_is_told(said: Said, tmp_path: Path, refed: Any) -> None:
    text = (
        "`refed synth --sice 3`, `refed sinth`\n"
        "```console\n$ X=1 refed status a --json | head \\\n    -n 1; refed judge agreement --pairz\n```\n"
    )
    unknown = [running.unknown_option(refed, words) for words in running.refed_commands(page(tmp_path, text))]
    said([message.rpartition(": ")[2] for message in unknown])


def test_a_key_that_there_is_not_is_told(said: Said, tmp_path: Path) -> None:
    for title in ("run-x.yaml", "teacher.yaml"):
        block = running.blocks(page(tmp_path, f'```yaml title="{title}"\ntemprature: 3\n```\n'))[0]
        with said.by(ConfigError):
            load(block, tmp_path)


def test_the_variables_of_the_settings_page_are_settings() -> None:
    page = (running.DOCS / "reference" / "settings.md").read_text(encoding="utf-8")
    examples = dict(re.findall(r'`(REFED_[A-Z_]+)="?(.+?)"?`', page))
    assert len(examples) >= 5 and load_config(RunConfig, None, examples)
    assert not read_variables(examples, RunConfig).unknown


def test_the_list_for_language_models_has_every_page() -> None:
    listed = set(re.findall(r"\]\(([\w/-]+\.md)\)", (running.DOCS / "llms.txt").read_text(encoding="utf-8")))
    assert listed == {path.relative_to(running.DOCS).as_posix() for path in running.DOCS.rglob("*.md")}


def test_every_public_name_is_in_the_reference() -> None:
    pages = "".join(path.read_text(encoding="utf-8") for path in (running.DOCS / "reference").glob("*.md"))
    shown = {name.rpartition(".")[2] for name in re.findall(r"^::: (refed_dspy\.[\w.]+)$", pages, re.MULTILINE)}
    assert not set(refed_dspy.__all__) - shown - {"programs"}


def test_the_messages_that_troubleshooting_explains_are_printed_somewhere() -> None:
    page = (running.DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "refed_dspy").rglob("*.py"))
    sources = re.sub(r'"\s+f?"', "", sources)  # a text over several lines
    parts = [part.strip() for title in re.findall(r"^### ([a-z].*)$", page, re.MULTILINE) for part in title.split("…")]
    others = {"malformed: Invalid JSON"}  # Pydantic's words
    assert len(parts) > 10 and not {part for part in parts if part not in sources} - others


def test_every_settings_class_is_in_the_reference() -> None:
    classes = {
        name
        for module in (settings, job_settings, evaluation_settings, filter_settings)
        for name, kind in inspect.getmembers(module, inspect.isclass)
        if issubclass(kind, Settings) and not kind.__subclasses__() and kind is not filter_settings.FilterConfig
    }
    text = (running.DOCS / "reference" / "settings.md").read_text(encoding="utf-8")
    assert not classes - set(GENERATED.findall(text))


@pytest.mark.slow
def test_the_generated_parts_are_those_of_the_present_program() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import sys; sys.path.insert(0, 'docs/site'); import hooks, pathlib\n"
         "for page in pathlib.Path('docs/reference').glob('*.md'):\n"
         "    assert page.read_text() == hooks.renewed(page.read_text()), f'{page}: run docs/site/hooks.py'"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built without a warning, of copies: Zensical writes it, and a cache, beside its configuration."""
    folder = tmp_path_factory.mktemp("site")
    shutil.copytree(ROOT / "docs", folder / "docs")
    shutil.copy(ROOT / "mkdocs.yml", folder)
    for name in ("refed_dspy", "examples", "benchmarks", "README.md", "CHANGELOG.md", "CONTRIBUTING.md"):
        (folder / name).symlink_to(ROOT / name)
    command = [str(Path(sys.executable).with_name("zensical")), "build", "--strict"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "site"


@pytest.mark.slow
def test_no_page_loads_anything_from_elsewhere(site: Path) -> None:
    loads = re.compile(
        r"""<(?:script|img|iframe|link|source|video|audio|embed|object)\b"""
        r"""[^>]*?(?:src|href|data)=["']?(?:https?:)?//[^"'> ]+"""
        r"""|url\(["']?(?:https?:)?//[^)]+|@import\s+["'](?:https?:)?//[^"']+"""
    )
    pages = [path for path in site.rglob("*") if path.suffix in {".html", ".css"}]
    loaded = [(path.name, match[0]) for path in pages for match in loads.finditer(path.read_text(encoding="utf-8"))]
    assert len(pages) > 25
    assert not loaded


@pytest.mark.slow
def test_the_reference_is_made_from_the_program(site: Path) -> None:
    commands, keys, python = (
        html.unescape(re.sub(r"<[^>]+>", "", (site / "reference" / f"{name}.html").read_text(encoding="utf-8")))
        for name in ("commands", "settings", "python")
    )
    assert "--per-reference N" in commands and re.search(r"malformed_retries\s+int, ≥ 0, ≤ 20", keys)
    assert "max_cost: float | None = ..." in python  # a keyword of synthesize, in its signature
    assert not re.search(r"–\s+(teacher|seed|reuse)\s+\(", python)  # and not told of again without a word
    assert not re.search(r"<!--|generated:", commands + keys)
    assert "interactive | batch | mixed" in keys and r"\|" not in keys


@pytest.mark.slow
def test_the_site_works_from_disk(site: Path) -> None:
    """Search finds, the colours switch, a copied block holds its commands alone; nothing is asked of any host."""
    api = pytest.importorskip("playwright.sync_api")
    browser_path = shutil.which("chromium") or pytest.skip("no chromium on this machine")
    asked: list[str] = []
    faults: list[str] = []
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        shown = browser.new_page(color_scheme="light")
        shown.on("request", lambda request: asked.append(request.url))
        shown.on("pageerror", lambda error: faults.append(str(error)))
        shown.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
        shown.goto((site / "index.html").as_uri())
        shown.keyboard.press("/")
        shown.keyboard.type("malformed_retries")
        found = shown.locator('a[href*="settings.html?h=malformed_retries"]')
        found.first.wait_for(timeout=20_000)
        shown.goto((site / "how-to" / "synthesize.html").as_uri())
        before = shown.evaluate("getComputedStyle(document.body).backgroundColor")
        shown.locator("label[for=__palette_1]").click()
        assert shown.evaluate("getComputedStyle(document.body).backgroundColor") != before
        copied = "(pre) => { pre.setAttribute('data-md-copying', ''); return pre.innerText }"
        text = shown.locator("pre", has_text="refed synth").first.evaluate(copied)
        browser.close()
    assert text.split()[:3] == ["refed", "synth", "--references"]
    assert text.split()[-2:] == ["--teacher", "openai/gpt-4o-mini"]
    assert not [url for url in asked if not url.startswith(("file:", "data:", "blob:"))]
    assert not faults
