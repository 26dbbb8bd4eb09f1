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
from refed_dspy.config import PriceConfig, TeacherConfig
from refed_dspy.data.export import export
from refed_dspy.data.references import References, load_references
from refed_dspy.estimating import Estimate, aestimate, estimate
from refed_dspy.outcome import Synthesis, read_run
from refed_dspy.paying import Progress
from refed_dspy.programs import ReferenceLevelFeedback
from refed_dspy.programs.saved import load_program, save_program
from refed_dspy.records import Analysis, Failure, Feedback, ImplementationStrategy, Reference, Sample
from refed_dspy.resuming import resume
from refed_dspy.synthesis import asynthesize, synthesize
from refed_dspy.teachers import open_teacher

__version__ = "0.1.0"

__all__ = [
    "Analysis",
    "Estimate",
    "Failure",
    "Feedback",
    "ImplementationStrategy",
    "PriceConfig",
    "Progress",
    "Reference",
    "ReferenceLevelFeedback",
    "References",
    "Sample",
    "Synthesis",
    "TeacherConfig",
    "aestimate",
    "asynthesize",
    "errors",
    "estimate",
    "export",
    "load_program",
    "load_references",
    "open_teacher",
    "programs",
    "read_run",
    "resume",
    "save_program",
    "synthesize",
]
