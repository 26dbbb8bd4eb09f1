"""Have a model answer a file of prompts, for a benchmark say. A second start continues, and pays for nothing twice."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from refed_dspy.config.keywords import with_keywords
from refed_dspy.config.loading import check_config
from refed_dspy.errors import RunStopped, briefly
from refed_dspy.files import as_path
from refed_dspy.jobs.job import folder_of, job
from refed_dspy.jobs.work import Work, caps_of
from refed_dspy.ledger.spending import spent
from refed_dspy.plugins.evaluate.answers.formats import OWN, UNANSWERED, check_format, file_of
from refed_dspy.plugins.evaluate.answers.result import Answers, Asking, write_answers
from refed_dspy.plugins.evaluate.prompts import PromptFile, load_prompts
from refed_dspy.plugins.evaluate.settings import AnswerFormat, AnswersConfig
from refed_dspy.records import digest_of
from refed_dspy.teachers import Teacher, open_teacher
from refed_dspy.teachers.failures import CallPolicy
from refed_dspy.teachers.progress import Progress, Watch

if TYPE_CHECKING:
    from refed_dspy.keywords import AnswersKeywords


@briefly
@with_keywords(AnswersConfig)
def answer_prompts(
    prompts: Any,
    *,
    teacher: Any = None,
    out: str | Path | None = None,
    progress: bool = True,
    on_progress: Callable[[Progress], None] | None = None,
    **settings: Unpack[AnswersKeywords],
) -> Answers:
    """Have a model answer `prompts` (whatever `load_prompts` takes), each as a plain turn of a chat.

    The model sees the instruction, a system prompt where there is one, and nothing else. Its answer is taken as it
    wrote it, without its reasoning; an empty one and one that ended at `max_tokens` count, and are counted.

    Args:
        teacher: the model that answers, as `synthesize` takes one.
        out: the folder for the ledger, `answers.jsonl`, the file of the `format`, and `unanswered.jsonl` with the
            prompts that have no answer. None: `refed-answers/` and a name made from prompts and model. The same call
            continues in it, and one with another `format` asks for nothing again.
        progress, on_progress: as `synthesize`.

    Raises:
        InputError: an argument cannot be used; nothing was paid for.
        RunStopped: it ended early; the answers so far are written.
    """
    config = check_config(AnswersConfig, settings)
    source = as_path(prompts)
    loaded = load_prompts(source, config.columns or None, config.system or "")
    opened = open_teacher(teacher)
    generator = config.generator or _plain_name(opened.model)
    check_format(config.format, loaded, generator)
    work = _work(config, loaded, opened)
    outputs = {OWN, UNANSWERED, file_of(config.format, generator)}
    folder = folder_of(out, "refed-answers", work.stored_identity)
    with job(folder, work, Watch(on_progress, progress), outputs, [source]) as at:
        asking = Asking(loaded.rows, opened, at)
        try:
            at.ask(loaded.rows, asking.answer)
        except (RunStopped, KeyboardInterrupt):
            _written(asking, loaded, config.format, generator)
            raise
        return _written(asking, loaded, config.format, generator)


def _work(config: AnswersConfig, prompts: PromptFile, teacher: Teacher) -> Work:
    return Work(
        kind="answers",
        identity={
            "prompts": digest_of([row.number, row.text, row.system] for row in prompts.rows),
            "system": config.system or "",
            "teacher": teacher.identity,
        },
        models={"teacher": teacher},
        size=len(prompts.rows),
        caps=caps_of(config),
        policy=CallPolicy(config.seed, config.max_failure_share),
        calls_each=1.0,
        unit="prompts",
        other="other answers",
    )


def _plain_name(model: str) -> str:
    """The last part of a model's name, with what no file can be named after replaced: `Qwen2.5-7B` of
    `hosted_vllm/Qwen/Qwen2.5-7B`."""
    return re.sub(r"[^\w.+-]+|^\.", "-", model.rstrip("/").rpartition("/")[2], flags=re.ASCII)[:100]


def _written(asking: Asking, prompts: PromptFile, format_: AnswerFormat, generator: str) -> Answers:
    """What all starts have answered so far, written into the folder. Raises ExportError where it cannot be."""
    at, used = asking.at, spent(asking.at.ledger)
    made = Answers(at.folder, prompts, format_, generator, asking.answered(), asking.failed, used, at.stopped)
    write_answers(made)
    return made
