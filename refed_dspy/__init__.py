"""Instruction data from a few excellent references, as a DSPy program.

import refed_dspy

references = refed_dspy.load_references("references.jsonl")
program = refed_dspy.programs.ReferenceLevelFeedback()
made = refed_dspy.synthesize(program, references, size=100, teacher="openai/gpt-4o-mini", run_dir="runs/first")
made.export("messages", "train.jsonl")
"""

import os as _os

# Before anything imports LiteLLM: it would fetch its price table from the network.
_os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "true")

from refed_dspy import errors, programs
from refed_dspy.config.loading import MetricConfig, PriceConfig, TeacherConfig
from refed_dspy.data.dataset import load_dataset
from refed_dspy.data.export import export
from refed_dspy.data.pairs import Pair, load_pairs
from refed_dspy.data.references import References, load_references
from refed_dspy.optimizers.compile import compile  # noqa: A004 — as `re.compile` and `dspy`'s optimizers call it
from refed_dspy.optimizers.judge_agreement import measure_agreement
from refed_dspy.optimizers.progress import CompileProgress
from refed_dspy.optimizers.result import Compiled
from refed_dspy.programs import PairwiseJudge, ReferenceLevelFeedback, RubricJudge
from refed_dspy.programs.load import open_program
from refed_dspy.programs.saved import load_program, save_program
from refed_dspy.records import Analysis, Failure, Feedback, ImplementationStrategy, Reference, Sample
from refed_dspy.runs.compare.compare import compare
from refed_dspy.runs.compare.result import Comparison
from refed_dspy.runs.estimate import Estimate, aestimate, estimate
from refed_dspy.runs.filter.filter import filter_data
from refed_dspy.runs.filter.result import Filtering
from refed_dspy.runs.recycle.recycle import recycle
from refed_dspy.runs.recycle.result import Recycling
from refed_dspy.runs.result import Synthesis, read_run
from refed_dspy.runs.resume import resume
from refed_dspy.runs.stats import DataStats, measure
from refed_dspy.runs.synthesize import asynthesize, synthesize
from refed_dspy.sharing.push import push
from refed_dspy.sharing.report.report import report
from refed_dspy.sharing.share import share
from refed_dspy.teachers import open_teacher
from refed_dspy.teachers.recorded import Progress
from refed_dspy.tracking.registry import promote
from refed_dspy.tracking.track import track as track

__version__ = "0.1.0"

__all__ = [
    "Analysis",
    "Comparison",
    "CompileProgress",
    "Compiled",
    "DataStats",
    "Estimate",
    "Failure",
    "Feedback",
    "Filtering",
    "ImplementationStrategy",
    "MetricConfig",
    "Pair",
    "PairwiseJudge",
    "PriceConfig",
    "Progress",
    "Recycling",
    "Reference",
    "ReferenceLevelFeedback",
    "References",
    "RubricJudge",
    "Sample",
    "Synthesis",
    "TeacherConfig",
    "aestimate",
    "asynthesize",
    "compare",
    "compile",
    "errors",
    "estimate",
    "export",
    "filter_data",
    "load_dataset",
    "load_pairs",
    "load_program",
    "load_references",
    "measure",
    "measure_agreement",
    "open_program",
    "open_teacher",
    "programs",
    "promote",
    "push",
    "read_run",
    "recycle",
    "report",
    "resume",
    "save_program",
    "share",
    "synthesize",
    "track",
]
