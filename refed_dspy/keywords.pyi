# Made from the classes of settings by docs/site/stubs.py: do not edit, run `make docs`.
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict

from refed_dspy.config.base import Turns
from refed_dspy.config.filters import FilterConfig, GuardSettings
from refed_dspy.config.scorer import ScorerConfig
from refed_dspy.filters.base import Filter
from refed_dspy.plugins.evaluate.settings import AnswerFormat
from refed_dspy.teachers import TeacherLike

class RunKeywords(TypedDict, total=False):
    """Settings of `RunConfig`."""

    size: int
    """Samples to keep."""
    run_dir: str | Path | None
    """The run's folder. Unset: one in `refed-runs/`, named after everything that shapes the run, so that the same
    settings continue it."""
    seed: int
    """Seed for the order of references and, if the teacher takes one, for each call."""
    per_reference: int | None
    """Maximum number of samples from one reference before the next one is used: with 20, a run costs least. Unset:
    an even share, so that all references are used."""
    reuse: str | Path | None
    """Folder of another run whose answers to identical questions are reused at no cost: after a recompile, only
    what follows from the changed prompts is paid for."""
    filters: Sequence[FilterConfig | Mapping[str, Any] | str | Filter]
    """The filters a sample must pass to be kept, in order; `size` counts kept samples. The ledger keeps the dropped
    ones, with filter, reason and score."""
    guards: GuardSettings | Mapping[str, Any] | bool
    """Two filters that run before all others: against texts that repeat their reference or talk about their prompt,
    and against instructions that cannot be understood alone; `false` for none. A dropped response is requested once
    more."""
    track: bool | None
    """Log the run to MLflow. Unset: if MLFLOW_TRACKING_URI is set or an earlier start was logged."""
    traced: float
    """The share of rows that are traced in MLflow while `mlflow.dspy.autolog()` is on. Rows that failed always are."""
    cluster: str | None
    """Work on a Ray cluster: `auto` for the one that this machine belongs to, its `HOST:PORT`, or `local:N` for N
    workers on this machine. Needs the extra `cluster`."""
    shards: int | None
    """Into how many shards of references a run on a cluster is split, once and for all. Unset: 64, or fewer where
    there are few references."""
    max_failure_share: float
    """Stop when this share of a stage's last 50 calls failed (of at least 20), or when its first 20 calls all
    failed."""
    max_cost: float | None
    """Dollars the work may cost, over all models and starts. The cap applies until it is set again; `.inf` lifts
    it."""
    max_calls: float | None
    """Calls the work may make, over all models and starts, whatever their outcome."""
    max_minutes: float | None
    """Minutes the work may take, over all starts."""
    judge_program: str | Path | None
    """A compiled or trained judge: its program's file or MLflow address."""
    judge_scorer: ScorerConfig | Mapping[str, Any] | None
    """The model that computes perplexities, where `judge_program` was trained with them."""
    accept_changed: bool
    """Accept a saved program or judge even if its prompts were edited after it was saved."""
    method: Literal["reference-level", "sample-level", "instruction-only"]
    """Which feedback guides the responses: feedback on the reference (the paper's method), on each response, or
    none."""
    features: Mapping[str, str] | None
    """Name → what feedback on an instruction looks for. Unset: the paper's two."""
    instructions_per_feature: int
    """How many instructions one synthesis call requests."""
    guidance: Mapping[str, str] | None
    """Stage → a sentence to add to its prompt."""
    criteria: bool
    """Also turn each reference into criteria that answers of its kind must meet, for the filter `criteria`: two
    calls a reference. A program's file that has these stages keeps them."""
    columns: Mapping[str, str] | None
    """Column names that differ from the usual ones: {instruction: question, response: answer}."""
    turns: Turns
    """How to treat conversations of several exchanges: `leave_out` (and count them), learn from the `first`
    exchange, or from the `last` with the earlier ones as context."""

class ResumeKeywords(TypedDict, total=False):
    """Settings of `RunConfig`."""

    size: int
    """Samples to keep."""
    teacher: TeacherLike | Sequence[TeacherLike] | None
    """The teacher, or pool of teachers, for every stage that `teachers` does not list."""
    teachers: Mapping[str, TeacherLike | Sequence[TeacherLike]] | None
    """Stage → its teacher or pool. `feedback` stands for all feedback stages."""
    judge: TeacherLike | None
    """The judge, for filters that need one. Unset: the teacher's model at temperature 0, with a warning."""
    max_failure_share: float
    """Stop when this share of a stage's last 50 calls failed (of at least 20), or when its first 20 calls all
    failed."""
    max_cost: float | None
    """Dollars the work may cost, over all models and starts. The cap applies until it is set again; `.inf` lifts
    it."""
    max_calls: float | None
    """Calls the work may make, over all models and starts, whatever their outcome."""
    max_minutes: float | None
    """Minutes the work may take, over all starts."""
    cluster: str | None
    """Work on a Ray cluster: `auto` for the one that this machine belongs to, its `HOST:PORT`, or `local:N` for N
    workers on this machine. Needs the extra `cluster`."""

class FilterKeywords(TypedDict, total=False):
    """Settings of `FilterRunConfig`."""

    columns: Mapping[str, str] | None
    """Column names that differ from the usual ones: {instruction: question, response: answer, plain: first_answer}."""
    seed: int
    """Seed for random draws and orders."""
    max_cost: float | None
    """Dollars the work may cost, over all models and starts. The cap applies until it is set again; `.inf` lifts
    it."""
    max_calls: float | None
    """Calls the work may make, over all models and starts, whatever their outcome."""
    max_minutes: float | None
    """Minutes the work may take, over all starts."""
    judge_program: str | Path | None
    """A compiled or trained judge: its program's file or MLflow address."""
    judge_scorer: ScorerConfig | Mapping[str, Any] | None
    """The model that computes perplexities, where `judge_program` was trained with them."""
    accept_changed: bool
    """Accept a saved program or judge even if its prompts were edited after it was saved."""

class CompileKeywords(TypedDict, total=False):
    """Settings of `CompileConfig`."""

    held_out_criteria: Sequence[str]
    """Criteria of `pairs` to use only in the test set."""
    options: Mapping[str, Any]
    """Settings for the optimizer; they override the package's choices. Of several: name → settings for it."""
    evaluations: int
    """Approximate number of times a candidate is scored on an example; of several optimizers, the most that one
    gets."""
    train: int
    """Maximum number of references to learn from. If there are too few references, the three sets share them in
    proportion."""
    validation: int
    """Maximum number of references for choosing candidates."""
    test: int
    """Maximum number of references for testing the best candidate."""
    features: Mapping[str, str] | None
    """Name → what feedback on an instruction looks for. Unset: the program's own features."""
    instructions_per_feature: int
    """How many instructions a candidate writes per call during the compile. The compiled program keeps its own
    number."""
    guidance: Mapping[str, str] | None
    """Stage → a sentence to add to its prompt."""
    prove: bool
    """Prove the gain on the test references. False: score nothing on them; needed where they are too few for a
    proof."""
    accept_longer: bool
    """Accept a gain that rests on longer answers: one that disappears, or cannot be measured, at equal length."""
    seed: int
    """Seed for the split and the optimizer."""
    threads: int
    """Examples evaluated at once; each makes several calls at once."""
    reuse: str | Path | None
    """Folder of another compile or run whose answers to identical questions are reused at no cost."""
    name: str
    """The registered model's name."""
    track: bool | None
    """Log the compile to MLflow. Unset: yes."""
    max_cost: float | None
    """Dollars the work may cost, over all models and starts. The cap applies until it is set again; `.inf` lifts
    it."""
    max_calls: float | None
    """Calls the work may make, over all models and starts, whatever their outcome."""
    max_minutes: float | None
    """Minutes the work may take, over all starts."""
    judge_program: str | Path | None
    """A compiled or trained judge: its program's file or MLflow address."""
    judge_scorer: ScorerConfig | Mapping[str, Any] | None
    """The model that computes perplexities, where `judge_program` was trained with them."""
    accept_changed: bool
    """Accept a saved program or judge even if its prompts were edited after it was saved."""
    columns: Mapping[str, str] | None
    """Column names that differ from the usual ones: {instruction: question, response: answer}."""
    turns: Turns
    """How to treat conversations of several exchanges: `leave_out` (and count them), learn from the `first`
    exchange, or from the `last` with the earlier ones as context."""

class PlanKeywords(TypedDict, total=False):
    """Settings of `CompileConfig`."""

    columns: Mapping[str, str] | None
    """Column names that differ from the usual ones: {instruction: question, response: answer}."""
    turns: Turns
    """How to treat conversations of several exchanges: `leave_out` (and count them), learn from the `first`
    exchange, or from the `last` with the earlier ones as context."""
    judge_program: str | Path | None
    """A compiled or trained judge: its program's file or MLflow address."""
    judge_scorer: ScorerConfig | Mapping[str, Any] | None
    """The model that computes perplexities, where `judge_program` was trained with them."""
    accept_changed: bool
    """Accept a saved program or judge even if its prompts were edited after it was saved."""
    features: Mapping[str, str] | None
    """Name → what feedback on an instruction looks for. Unset: the program's own features."""
    instructions_per_feature: int
    """How many instructions a candidate writes per call during the compile. The compiled program keeps its own
    number."""
    guidance: Mapping[str, str] | None
    """Stage → a sentence to add to its prompt."""
    threads: int
    """Examples evaluated at once; each makes several calls at once."""
    seed: int
    """Seed for the split and the optimizer."""
    reuse: str | Path | None
    """Folder of another compile or run whose answers to identical questions are reused at no cost."""
    track: bool | None
    """Log the compile to MLflow. Unset: yes."""
    max_cost: float | None
    """Dollars the work may cost, over all models and starts. The cap applies until it is set again; `.inf` lifts
    it."""
    max_calls: float | None
    """Calls the work may make, over all models and starts, whatever their outcome."""
    max_minutes: float | None
    """Minutes the work may take, over all starts."""

class CompareKeywords(TypedDict, total=False):
    """Settings of `CompareConfig`."""

    against: str
    """The program to compare all others with."""
    size: int
    """How many instructions every program answers."""
    instructions_per_feature: int
    """How many instructions one synthesis call requests."""
    per_reference: int | None
    """Maximum number of instructions per reference: those of one reference are alike, so confidence intervals need
    many references."""
    features: Mapping[str, str] | None
    """Name → what feedback on an instruction looks for. Unset: the paper's two."""
    grades: bool
    """Also grade every program's rows by a rubric: the only measure that includes the seed set."""
    subsets: Sequence[int] | None
    """Sizes of the filters' subsets. Unset: an eighth, a quarter, a half and all of the rows."""
    embeddings: bool | None
    """Measure semantic diversity with the small embedding model. Unset: if its weights are present."""
    seed: int
    """Seed for random draws and orders."""
    max_failure_share: float
    """Stop when this share of a stage's last 50 calls failed (of at least 20), or when its first 20 calls all
    failed."""
    reuse: str | Path | None
    """Folder of another comparison or run whose answers to identical questions are reused at no cost."""
    track: bool | None
    """Log the comparison to MLflow. Unset: if MLFLOW_TRACKING_URI is set or an earlier start was logged."""
    max_cost: float | None
    """Dollars the work may cost, over all models and starts. The cap applies until it is set again; `.inf` lifts
    it."""
    max_calls: float | None
    """Calls the work may make, over all models and starts, whatever their outcome."""
    max_minutes: float | None
    """Minutes the work may take, over all starts."""
    judge_program: str | Path | None
    """A compiled or trained judge: its program's file or MLflow address."""
    judge_scorer: ScorerConfig | Mapping[str, Any] | None
    """The model that computes perplexities, where `judge_program` was trained with them."""
    accept_changed: bool
    """Accept a saved program or judge even if its prompts were edited after it was saved."""
    columns: Mapping[str, str] | None
    """Column names that differ from the usual ones: {instruction: question, response: answer}."""
    turns: Turns
    """How to treat conversations of several exchanges: `leave_out` (and count them), learn from the `first`
    exchange, or from the `last` with the earlier ones as context."""

class RecycleKeywords(TypedDict, total=False):
    """Settings of `RecycleConfig`."""

    size: int | None
    """How many rows to recycle, drawn with the seed. Unset: all."""
    instruction_criteria: Mapping[str, str] | None
    """Name → meaning of each criterion for reflecting on an instruction. Unset: the paper's five."""
    response_criteria: Mapping[str, str] | None
    """The same for responses. Unset: the paper's four."""
    accept_changed: bool
    """Accept a saved program even if its prompts were edited after it was saved."""
    scorer: ScorerConfig | Mapping[str, Any] | None
    """The model that computes IFD and r-IFD; unset, they are not measured."""
    selective: bool
    """Keep a new instruction only if it is harder (IFD), a new response only if it fits better (r-IFD)."""
    unimproved: Literal["keep", "drop"]
    """What selective mode does with rows whose response did not improve. `drop`: as the authors' code does."""
    embeddings: bool | None
    """Measure coherence and semantic diversity with the small embedding model. Unset: if its weights are present."""
    sample: int
    """Rows to draw for slow measurements."""
    max_failure_share: float
    """Stop when this share of a stage's last 50 calls failed (of at least 20), or when its first 20 calls all
    failed."""
    columns: Mapping[str, str] | None
    """Column names that differ from the usual ones: {instruction: question, response: answer, plain: first_answer}."""
    seed: int
    """Seed for random draws and orders."""
    max_cost: float | None
    """Dollars the work may cost, over all models and starts. The cap applies until it is set again; `.inf` lifts
    it."""
    max_calls: float | None
    """Calls the work may make, over all models and starts, whatever their outcome."""
    max_minutes: float | None
    """Minutes the work may take, over all starts."""

class StatsKeywords(TypedDict, total=False):
    """Settings of `StatsConfig`."""

    scorer: ScorerConfig | Mapping[str, Any] | None
    """The model that computes perplexity, IFD and r-IFD; unset, they are not measured."""
    sample: int
    """Rows to draw for slow or paid measurements: self-ROUGE-L, perplexity, verdicts."""
    embeddings: bool | None
    """Measure coherence and semantic diversity with the small embedding model. Unset: if its weights are present."""
    cluster: str | None
    """Have the embedding model and the scorer on a Ray cluster: `auto`, its `HOST:PORT`, or `local:N` for N copies
    on this machine. All else is done here."""
    columns: Mapping[str, str] | None
    """Column names that differ from the usual ones: {instruction: question, response: answer, plain: first_answer}."""
    seed: int
    """Seed for random draws and orders."""
    max_cost: float | None
    """Dollars the work may cost, over all models and starts. The cap applies until it is set again; `.inf` lifts
    it."""
    max_calls: float | None
    """Calls the work may make, over all models and starts, whatever their outcome."""
    max_minutes: float | None
    """Minutes the work may take, over all starts."""

class AnswersKeywords(TypedDict, total=False):
    """Settings of `AnswersConfig`."""

    columns: Mapping[str, str] | None
    """Column names that differ from the usual ones: {instruction: question, system: system_prompt}."""
    system: str | None
    """The system prompt of prompts that have none of their own. Unset: none."""
    format: AnswerFormat
    """The file that is written beside `answers.jsonl`: what a benchmark's own code reads."""
    generator: str | None
    """The model's name in that file. Unset: the last part of its name."""
    seed: int
    """Seed of the calls, where a model takes one."""
    max_failure_share: float
    """Stop when this share of a stage's last 50 calls failed (of at least 20), or when its first 20 calls all
    failed."""
    max_cost: float | None
    """Dollars the work may cost, over all models and starts. The cap applies until it is set again; `.inf` lifts
    it."""
    max_calls: float | None
    """Calls the work may make, over all models and starts, whatever their outcome."""
    max_minutes: float | None
    """Minutes the work may take, over all starts."""

class AlpacaEvalKeywords(TypedDict, total=False):
    """Settings of `AlpacaEvalConfig`."""

    gamed: str | Path | None
    """AlpacaEval's `df_gamed.csv`, in the cache of the Hub's client: with it the length-controlled win rate is the
    official one. Unset: a fit of our own, which compares with others of its kind alone."""
    environment: str | Path | None
    """An environment (its folder, or its Python) that has what the benchmark's code needs: `alpaca-eval`, PyTorch
    for Arena-Hard, or `lm-eval[ifeval]`. Unset: one is made, once for each user."""
    track: bool | None
    """Log the evaluation to MLflow. Unset: if MLFLOW_TRACKING_URI is set or an earlier start was logged."""
    max_cost: float | None
    """Dollars the work may cost, over all models and starts. The cap applies until it is set again; `.inf` lifts
    it."""
    max_calls: float | None
    """Calls the work may make, over all models and starts, whatever their outcome."""
    max_minutes: float | None
    """Minutes the work may take, over all starts."""

class ArenaHardKeywords(TypedDict, total=False):
    """Settings of `ArenaHardConfig`."""

    benchmark: str
    """The benchmark: a folder in the clone's `data`."""
    category: str | None
    """The category of its questions. Unset: `hard_prompt` of arena-hard-v2.0, the only one of arena-hard-v0.1."""
    questions: int | None
    """How many of the category's questions are judged, from the first. Unset: all."""
    style_control: bool
    """Whether scores at equal style are computed as well. They need the style metadata of every answer."""
    environment: str | Path | None
    """An environment (its folder, or its Python) that has what the benchmark's code needs: `alpaca-eval`, PyTorch
    for Arena-Hard, or `lm-eval[ifeval]`. Unset: one is made, once for each user."""
    track: bool | None
    """Log the evaluation to MLflow. Unset: if MLFLOW_TRACKING_URI is set or an earlier start was logged."""
    max_cost: float | None
    """Dollars the work may cost, over all models and starts. The cap applies until it is set again; `.inf` lifts
    it."""
    max_calls: float | None
    """Calls the work may make, over all models and starts, whatever their outcome."""
    max_minutes: float | None
    """Minutes the work may take, over all starts."""

class IFEvalKeywords(TypedDict, total=False):
    """Settings of `IFEvalConfig`."""

    environment: str | Path | None
    """An environment (its folder, or its Python) that has what the benchmark's code needs: `alpaca-eval`, PyTorch
    for Arena-Hard, or `lm-eval[ifeval]`. Unset: one is made, once for each user."""
    track: bool | None
    """Log the evaluation to MLflow. Unset: if MLFLOW_TRACKING_URI is set or an earlier start was logged."""

class JudgeTrainingKeywords(TypedDict, total=False):
    """Settings of `JudgeTrainingConfig`."""

    criteria: Sequence[str] | None
    """Only the pairs judged by these; `overall quality` names those without a criterion. Unset: all."""
    accept_changed: bool
    """Accept a saved judge even if its prompts were edited after it was saved."""
    optimizer: str | None
    """First compile the judge's prompts on the training pairs: bootstrap, gepa, mipro, simba, or the dotted name of
    any other DSPy optimizer. Unset: the prompts stay as they are."""
    evaluations: int
    """Approximate number of times that compile scores a candidate on a pair."""
    held_out: float
    """Share of the instructions, criteria and systems to hold out."""
    held_out_criteria: Sequence[str]
    """Criteria to hold out. Unset: drawn with the seed, where there are at least three."""
    held_out_systems: Sequence[str]
    """Systems whose answers to hold out. Unset: drawn with the seed, where there are at least four."""
    grades: bool
    """Also train on people's grades of single answers, where there are any; it takes a call an answer."""
    scorer: ScorerConfig | Mapping[str, Any] | None
    """A model that computes the perplexity of answers, as one more figure. Whoever uses the judge then needs it,
    too, as `judge_scorer`."""
    seed: int
    """Seed for what is held out."""
    reuse: str | Path | None
    """Folder of other work of the same judge, an agreement say, whose answers are used at no cost."""
    max_cost: float | None
    """Dollars the work may cost, over all models and starts. The cap applies until it is set again; `.inf` lifts
    it."""
    max_calls: float | None
    """Calls the work may make, over all models and starts, whatever their outcome."""
    max_minutes: float | None
    """Minutes the work may take, over all starts."""
