"""The embedded teacher's seconds a sample: in the plan's order, which keeps prefixes cached, and in shuffled order.

The plan (`runs/plan.py`) orders a run's questions; canned answers drive it here to get their list. One llama.cpp server
gets the two questions of each sample in that order, a second one the same questions shuffled across references and
stages. The two servers are asked alternately, so that other work on the machine affects both; each answer has exactly
WRITTEN tokens. What is asked once for a reference is left out: it takes as long in any order.

A server keeps prefixes that lost their slot in memory (`CACHE_RAM_MIB`): with few references it would keep them all,
and no order would matter. A run of RUN samples has more prefixes than this one, so both servers get proportionally less
memory, and about as many questions find their prefix as would in that run.

`python -m benchmarks.warm [GGUF]`: about ten minutes of two cores.
"""

from __future__ import annotations

import json
import random
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from refed_dspy import load_references
from refed_dspy.programs import ReferenceLevelFeedback
from refed_dspy.programs.adapter import SchemaAdapter
from refed_dspy.records import Reference
from refed_dspy.runs.plan import Plan, PlanSettings, Propose, Respond, Study
from refed_dspy.signatures import DEFAULT_FEATURES
from refed_dspy.teachers.local.llama import CACHE_RAM_MIB, LlamaServer

REFERENCES, SAMPLES, WRITTEN, SEED = 4, 6, 48, 7
"""How many references, samples of each, and tokens of each answer."""
RUN = 2_000
"""Samples of the run that is imitated: 100 references of 20, two prefixes each."""
GUIDANCE = {
    "response_generation": "At most 100 words.",
    "response_improvement": "One short note in each list. The improved response has at most 120 words.",
}


@dataclass(frozen=True)
class Asked:
    """A stage's question, as messages."""

    stage: str
    messages: list[dict[str, str]] = field(hash=False)


def questions() -> list[Asked]:
    """All questions of a small run, in the plan's order, one at a time."""
    references = load_references("builtin")
    rng = random.Random(SEED)
    chosen = rng.sample(range(len(references)), REFERENCES)
    settings = PlanSettings(
        REFERENCES * SAMPLES, REFERENCES, tuple(DEFAULT_FEATURES), SAMPLES, SAMPLES, SEED, lead=True
    )
    plan, asked, made = Plan(settings), list[Asked](), 0
    program = ReferenceLevelFeedback(instructions_per_feature=SAMPLES, guidance=GUIDANCE)
    while (unit := plan.next_unit()) is not None:
        reference = references[chosen[unit.reference]]
        other = references[(chosen[unit.reference] + 1) % len(references)]
        match unit:
            case Study():
                asked.append(_study(program, unit, reference))
                plan.studied(unit)
            case Propose():
                asked.append(_propose(program, unit, reference, _words(other.response, 40)))
                texts = [_words(references[(made + n) % len(references)].instruction, 25) for n in range(SAMPLES)]
                plan.proposed(unit, list(enumerate(texts, made)))
                made += SAMPLES
            case Respond():
                asked += _respond(program, unit, reference, _words(other.response, 150), references)
                plan.responded(unit, kept=True)
    return asked


def _study(program: ReferenceLevelFeedback, unit: Study, reference: Reference) -> Asked:
    stage = "instruction_feedback" if unit.kind == "features" else "response_feedback"
    return _asked(program, stage, reference_instruction=reference.instruction, reference_response=reference.response)


def _propose(program: ReferenceLevelFeedback, unit: Propose, reference: Reference, feature: str) -> Asked:
    return _asked(
        program,
        "instruction_synthesis",
        reference_instruction=reference.instruction,
        taken=[],
        feature_name=unit.feature.replace("_", " "),
        feature=feature,
        how_many=SAMPLES,
    )


def _respond(
    program: ReferenceLevelFeedback, unit: Respond, reference: Reference, feedback: str, references: Any
) -> Iterator[Asked]:
    answer = _words(references[(unit.instruction_id + 7) % len(references)].response, 80)
    yield _asked(
        program,
        "response_generation",
        example_instruction=reference.instruction,
        example_response=reference.response,
        instruction=unit.text,
    )
    yield _asked(program, "response_improvement", reference_feedback=feedback, instruction=unit.text, response=answer)


def _asked(program: ReferenceLevelFeedback, stage: str, **inputs: Any) -> Asked:
    return Asked(stage, SchemaAdapter().format(getattr(program, stage).signature, [], inputs))


def _words(text: str, count: int) -> str:
    return " ".join(text.split()[:count])


def ask(url: str, asked: Asked) -> tuple[float, int, int]:
    """Seconds, prompt tokens and cached prompt tokens. The answer always has WRITTEN tokens."""
    body = {"messages": asked.messages, "max_tokens": WRITTEN, "temperature": 0, "ignore_eos": True, "seed": SEED}
    request = urllib.request.Request(
        f"{url}/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    begun = time.monotonic()
    with urllib.request.urlopen(request, timeout=300) as response:
        usage = json.loads(response.read())["usage"]
    seconds = time.monotonic() - begun
    assert usage["completion_tokens"] == WRITTEN, usage
    return seconds, usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"]


def main() -> None:
    from refed_dspy.weights import WEIGHTS, find

    gguf = Path(sys.argv[1]) if len(sys.argv) > 1 else find(WEIGHTS["embedded"])
    kept = [question for question in questions() if question.stage in GUIDANCE]
    shuffled = random.Random(SEED).sample(kept, len(kept))
    memory = round(CACHE_RAM_MIB * REFERENCES / (RUN / 20))
    print(f"{len(kept)} questions of {REFERENCES} references; {memory} MiB for prefixes", flush=True)
    totals = {"kept": [0.0, 0, 0], "shuffled": [0.0, 0, 0]}
    in_order, out_of_order = (LlamaServer(gguf, slots=1, window=4096, cache_mib=memory) for _ in range(2))
    with in_order, out_of_order:
        for count, pair in enumerate(zip(kept, shuffled, strict=True), 1):
            servers = [("kept", in_order, pair[0]), ("shuffled", out_of_order, pair[1])]
            for name, server, asked in servers if count % 2 else reversed(servers):
                for place, number in enumerate(ask(server.url, asked)):
                    totals[name][place] += number
            if count % (2 * SAMPLES) == 0:
                print(f"after {count}: " + "; ".join(figures(name, totals[name], count) for name in totals), flush=True)
    print(f"shuffled / kept: {totals['shuffled'][0] / totals['kept'][0]:.2f} (must be >= 1.4)")


def figures(name: str, total: list[float], questions: int) -> str:
    seconds, prompt, cached = total
    return (
        f"{name} {2 * seconds / questions:.1f} s a sample, {cached / prompt:.0%} of {prompt:.0f} prompt tokens cached"
    )


if __name__ == "__main__":
    main()
