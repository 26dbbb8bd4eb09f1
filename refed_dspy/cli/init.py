"""`refed init`: a file of settings for a run, with comments, for a teacher chosen by name."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from refed_dspy.cli.options import reporting
from refed_dspy.cli.printing import say
from refed_dspy.errors import ExportError, one_line

if TYPE_CHECKING:  # help should not wait for pydantic
    from refed_dspy.config.teacher import TeacherConfig

app = typer.Typer()
_SETTINGS = """\
# Settings of a run. Lines with a # and no space after it, such as #seed, are off: remove the # to turn them on.

references: {references}  # these come with refed; or your own: a file (jsonl, json, csv, parquet) or a Hub data set
size: 20  # samples to keep
run_dir: runs/first  # the run's folder; run the same command again to continue
{program}
teacher:
{teacher}
#judge: {{model: {judge}}}  # for filters that need one; ideally a stronger model than the teacher

# The run stops before all its starts exceed any of these, if the endpoint keeps to max_tokens.
{cost}
#max_calls: 1000
#max_minutes: 60

#filters:  # every dropped sample is replaced by another
#  - refusals
#  - near_duplicates
#  - length: {{max_words: 800}}
#  - judge  # the improved response must beat the plain one: two calls per sample

#seed: 0  # another seed makes other samples
#track: true  # log the run to MLflow
"""
_ANY = ("#temperature: 1.0", "#max_tokens: {most}  # a longer answer is cut off and lost", "#concurrency: 32")
_OWN_MACHINE = "price: {prompt: 0, completion: 0}  # your own machine"
_WINDOW = "context_window: 8192  # the server's own setting; longer references are left out"
_AT = {
    "ollama": ("api_base: http://localhost:11434/v1", _OWN_MACHINE, _WINDOW, "concurrency: 4"),
    "vllm": ("api_base: http://localhost:8000/v1", _OWN_MACHINE, f"#{_WINDOW}", "concurrency: 256"),
    "sglang": ("api_base: http://localhost:30000/v1", _OWN_MACHINE, f"#{_WINDOW}", "concurrency: 256"),
    "llama-cpp": ("api_base: http://localhost:8080/v1", _OWN_MACHINE, _WINDOW, "concurrency: 4"),
    "azure": (
        "api_base: https://YOUR-RESOURCE.openai.azure.com",
        "#api_version: 2024-10-21  # the dated API; without it, the v1 API",
        "api_key_env: AZURE_OPENAI_API_KEY  # the NAME of the variable that holds the key",
        "#price: azure/gpt-4o-mini  # the deployed model, if the name does not say",
        *_ANY,
    ),
}
"""Provider → the lines of a teacher that is not at the provider's own address."""
_ELSEWHERE = (
    "api_base: http://localhost:8000/v1  # the endpoint's address, up to and including /v1",
    "#api_key_env: MY_KEY  # the NAME of the variable that holds its key",
    "#price: {prompt: 0.15, completion: 0.6}  # dollars per million tokens; needed for max_cost",
    *_ANY,
)
_LOCAL = ("temperature: 0.7", "max_tokens: 1024", "#context_window: 8192", "#concurrency: 2")


@app.command()
@reporting
def init(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The file to write.")] = Path("refed.yaml"),
    teacher: Annotated[
        str, typer.Option(help="PROVIDER/NAME, embedded, simulated or a .gguf file.", metavar="NAME")
    ] = "openai/gpt-4o-mini",
) -> None:
    """Write a commented settings file for a teacher."""
    from refed_dspy.files import as_export_error, check_output

    text, before = settings_for(teacher)
    check_output(file)
    with as_export_error(file):
        try:
            with file.open("x", encoding="utf-8") as opened:
                opened.write(text)
        except FileExistsError:
            raise ExportError(f"{one_line(file, 200)}: already exists; choose another file or delete it") from None
    name = shlex.quote(str(file))
    say(f"settings for {one_line(teacher, 100)} are in {name}; next:")
    say("\n".join(f"  {line}" for line in (*before, f"refed teacher check {name}", f"refed synth --config {name}")))


def settings_for(teacher: str) -> tuple[str, list[str]]:
    """The settings file for a teacher of this name, and what to do before the teacher can be used.

    Raises:
        ConfigError: no teacher can have this name.
    """
    from refed_dspy.config.loading import load_config
    from refed_dspy.config.run import RunConfig
    from refed_dspy.config.teacher import EMBEDDED, TeacherConfig

    key = "gguf" if teacher.endswith(".gguf") else "model"
    config = load_config(RunConfig, environ={}, teacher={key: teacher}).teacher
    assert isinstance(config, TeacherConfig)
    lines, before, priced = _teacher(config)
    name = teacher if re.fullmatch(r"\w[\w./:@+-]*", teacher) else json.dumps(teacher, ensure_ascii=False)
    small = str(config.model) in EMBEDDED
    text = _SETTINGS.format(
        references="builtin-short" if small else "builtin",
        program="program: embedded  # with demonstrations, for such a small model\n" if small else "",
        teacher="".join(f"  {line}\n" for line in [f"{key}: {name}", *lines]).replace("{most}", str(config.max_tokens)),
        judge="simulated" if config.simulated else "openai/gpt-4.1",
        cost="max_cost: 1.0  # dollars" if priced else "#max_cost: 1.0  # dollars; needs the teacher's price",
    )
    return text, before


def _teacher(config: TeacherConfig) -> tuple[Sequence[str], list[str], bool]:
    """The lines about a teacher, what to do before it can be used, and whether its price is known."""
    from refed_dspy.config.teacher import reasons
    from refed_dspy.teachers.prices import table_price
    from refed_dspy.teachers.route import key_variable

    if config.simulated:
        return ["# Not a model: texts from word lists, to try refed out."], [], True
    if config.embedded:
        return _LOCAL, [] if config.gguf else [f"refed teacher fetch {config.model}"], True
    model = str(config.model)
    provider, priced = model.partition("/")[0], table_price(model) is not None
    if provider == "azure":
        return _AT[provider], ["set api_base in the file", "export AZURE_OPENAI_API_KEY=…"], priced
    if provider in _AT:
        return _AT[provider], [], True
    if (variable := key_variable(model)) is None:
        return _ELSEWHERE, ["set api_base in the file"], False
    effort = ["#reasoning: low  # or medium, high"] if reasons(model) else []
    return [f"# The key is read from the variable {variable}.", *_ANY, *effort], [f"export {variable}=…"], priced
