"""Instruction data from a few excellent references, as a DSPy program.

import refed_dspy

references = refed_dspy.load_references("references.jsonl")
program = refed_dspy.programs.ReferenceLevelFeedback()
made = refed_dspy.synthesize(program, references, size=100, teacher="openai/gpt-4o-mini", run_dir="runs/first")
made.export("messages", "train.jsonl")
"""

from __future__ import annotations

import os
from importlib import import_module

TYPE_CHECKING = False  # as typing's, which takes time to import: the command heeds Ctrl-C only once it runs

# Before anything imports LiteLLM: it would fetch its price table from the network.
os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "true")

if TYPE_CHECKING:  # for editors: at run time no plug-in is imported before its function is used
    from typing import Any

    from refed_dspy import errors, programs
    from refed_dspy.config.teacher import TeacherConfig
    from refed_dspy.data.references import load_references
    from refed_dspy.jobs.recording import recording
    from refed_dspy.optimizers.beats_baseline import BeatsBaseline
    from refed_dspy.optimizers.compile import compile  # noqa: A004 — as `re.compile`
    from refed_dspy.optimizers.examples import split
    from refed_dspy.optimizers.planning import plan_compile
    from refed_dspy.optimizers.prove import prove
    from refed_dspy.plugins.compare.compare import compare
    from refed_dspy.plugins.evaluate.alpaca_eval.evaluate import alpaca_eval
    from refed_dspy.plugins.evaluate.answers.answers import answer_prompts
    from refed_dspy.plugins.evaluate.arena_hard.evaluate import arena_hard
    from refed_dspy.plugins.evaluate.ifeval.evaluate import ifeval
    from refed_dspy.plugins.judge.agree import measure_agreement
    from refed_dspy.plugins.judge.annotate.annotate import annotate
    from refed_dspy.plugins.judge.training.train import train_judge
    from refed_dspy.plugins.metrics.stats import measure
    from refed_dspy.plugins.recycle.recycle import recycle
    from refed_dspy.plugins.share.push import push
    from refed_dspy.plugins.share.report.report import report
    from refed_dspy.plugins.share.share import share
    from refed_dspy.programs.adapter import SchemaAdapter
    from refed_dspy.programs.load import load_program
    from refed_dspy.programs.reference_level import ReferenceLevelFeedback
    from refed_dspy.programs.saved import save_program
    from refed_dspy.records import Reference
    from refed_dspy.runs.estimate import estimate
    from refed_dspy.runs.filter.filter import filter_data
    from refed_dspy.runs.result import read_run
    from refed_dspy.runs.resume import resume
    from refed_dspy.runs.synthesize import asynthesize, stream, synthesize
    from refed_dspy.tracking.registry import promote
    from refed_dspy.tracking.track import track

__version__ = "0.2.0"

_PLACES = {
    "errors": "",
    "programs": "",
    "load_references": "data.references",
    "Reference": "records",
    "ReferenceLevelFeedback": "programs.reference_level",
    "SchemaAdapter": "programs.adapter",
    "load_program": "programs.load",
    "save_program": "programs.saved",
    "TeacherConfig": "config.teacher",
    "recording": "jobs.recording",
    "synthesize": "runs.synthesize",
    "asynthesize": "runs.synthesize",
    "stream": "runs.synthesize",
    "resume": "runs.resume",
    "estimate": "runs.estimate",
    "read_run": "runs.result",
    "filter_data": "runs.filter.filter",
    "recycle": "plugins.recycle.recycle",
    "measure": "plugins.metrics.stats",
    "answer_prompts": "plugins.evaluate.answers.answers",
    "alpaca_eval": "plugins.evaluate.alpaca_eval.evaluate",
    "arena_hard": "plugins.evaluate.arena_hard.evaluate",
    "ifeval": "plugins.evaluate.ifeval.evaluate",
    "compare": "plugins.compare.compare",
    "compile": "optimizers.compile",
    "split": "optimizers.examples",
    "BeatsBaseline": "optimizers.beats_baseline",
    "plan_compile": "optimizers.planning",
    "prove": "optimizers.prove",
    "measure_agreement": "plugins.judge.agree",
    "train_judge": "plugins.judge.training.train",
    "promote": "tracking.registry",
    "track": "tracking.track",
    "annotate": "plugins.judge.annotate.annotate",
    "report": "plugins.share.report.report",
    "share": "plugins.share.share",
    "push": "plugins.share.push",
}
"""Public name → the module that has it. Imported when it is first used (PEP 562): DSPy alone takes two seconds."""

__all__ = [
    "BeatsBaseline",
    "Reference",
    "ReferenceLevelFeedback",
    "SchemaAdapter",
    "TeacherConfig",
    "alpaca_eval",
    "annotate",
    "answer_prompts",
    "arena_hard",
    "asynthesize",
    "compare",
    "compile",
    "errors",
    "estimate",
    "filter_data",
    "ifeval",
    "load_program",
    "load_references",
    "measure",
    "measure_agreement",
    "plan_compile",
    "programs",
    "promote",
    "prove",
    "push",
    "read_run",
    "recording",
    "recycle",
    "report",
    "resume",
    "save_program",
    "share",
    "split",
    "stream",
    "synthesize",
    "track",
    "train_judge",
]


if not TYPE_CHECKING:  # to a type checker it would make every name a public one

    def __getattr__(name: str) -> Any:
        if (place := _PLACES.get(name)) is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        try:
            module = import_module(f"{__name__}.{place or name}")
        except ModuleNotFoundError as error:
            from refed_dspy.registry import missing

            raise missing(name, f"{__name__}.{place or name}", error) from None
        value = getattr(module, name) if place else module
        globals()[name] = value  # the next use finds it without asking
        return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
