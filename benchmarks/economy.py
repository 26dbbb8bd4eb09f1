"""Prompt tokens and dollars per sample: references of 1,800 characters, answers of realistic length, o200k_base.

The simulated server counts tokens as OpenAI does (messages only, in steps of 128; a prefix is cached once a request
with it has been answered) and keeps the bill. Dollars are at gpt-4o-mini's list price, for 10,000 samples: first with a
cache that has no minimum length, then with OpenAI's minimum of 1,024 tokens, then in batches, which have no cache and
cost half; at last in the batches of each provider, at the list prices of a small model of its own.

`python -m benchmarks.economy [SIZE]`; SIZE is 1,000 samples, 20 of each reference.
"""

from __future__ import annotations

import json
import random
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import refed_dspy
from benchmarks.simulated import SimulatedTeacher
from benchmarks.tokenizers import tokenizer
from refed_dspy import TeacherConfig, load_references
from refed_dspy.config.teacher import PriceConfig
from refed_dspy.programs import ReferenceLevelFeedback
from refed_dspy.programs.adapter import rendering
from refed_dspy.records import PICO
from refed_dspy.runs.result import Synthesis
from refed_dspy.teachers.prices import table_price

LENGTH, SHARE = 1_800, 0.2
"""Characters of a reference, and the instruction's share of them, as in the package's own references."""
TOKENS = {
    "response": 400,
    "improved_response": 400,
    "analysis": 150,
    "implementation_strategy": 70,
    "new_instructions": 25,
    "response_feedback": 300,
    "subject_areas": 60,
    "relevant_skills": 60,
}
PER_REFERENCE = 20
PROMPT, CACHED, COMPLETION, BATCH = 0.15, 0.075, 0.60, 0.5
"""Dollars a million tokens, and the share of them that a batch costs (its prompts all at the plain price)."""
OPENAI_MINIMUM = 1_024
LISTED = ("openai/gpt-4o-mini", "anthropic/claude-haiku-4-5", "gemini/gemini-2.5-flash")
"""Models whose list prices are in the price table."""
NAMED = "o200k_base"


def references(count: int, plain: bool = True) -> list[dict[str, str]]:
    """`count` references of exactly LENGTH characters, shuffled from the package's own: sentences of English prose, or
    (`plain` false) whole paragraphs, with code, tables and figures."""
    texts = [reference.response for reference in load_references("builtin")]
    pieces = [piece.strip() for text in texts for piece in re.split(r"\n\s*\n", text) if len(piece) >= 120]
    if plain:
        prose = [piece for piece in pieces if "\n" not in piece and _letters(piece) >= 0.94]
        pieces = [sentence for piece in prose for sentence in re.split(r"(?<=[.!?]) ", piece)]
    made = []
    for number in range(count):
        text = " ".join(random.Random(number).sample(pieces, len(pieces)))[:LENGTH]
        cut = text.index(" ", int(LENGTH * SHARE))
        made.append({"instruction": text[:cut], "response": text[cut:]})
    return made


def _letters(text: str) -> float:
    """The share of letters and spaces."""
    return sum(character.isalpha() or character == " " for character in text) / len(text)


def run(server: SimulatedTeacher, size: int, pairs: list[dict[str, str]], **settings: Any) -> tuple[Synthesis, Any]:
    """A run of `size` samples, and the server's counts for it. `settings` are the teacher's."""
    server.reset()
    usual = {"model": "sim/sim-model", "api_base": server.base_url, "timeout": 60, "concurrency": 32}
    usual["price"] = PriceConfig(prompt=PROMPT, cached=CACHED, completion=COMPLETION)
    teacher = TeacherConfig.model_validate(usual | settings)
    with tempfile.TemporaryDirectory() as folder:
        made = refed_dspy.synthesize(None, pairs, size=size, teacher=teacher, run_dir=Path(folder) / "run")
        assert made.complete, made.status
    return made, server.stats()


def dollars(stats: dict[str, Any], size: int) -> float:
    """The cost of 10,000 samples by the server's bill."""
    prompt, cached = stats["billed_prompt_tokens"], stats["billed_cached_tokens"]
    cost = (prompt - cached) * PROMPT + cached * CACHED + stats["billed_completion_tokens"] * COMPLETION
    batched = stats["batch_billed_prompt_tokens"] * PROMPT + stats["batch_billed_completion_tokens"] * COMPLETION
    return float(cost + batched * BATCH) / 1e6 / size * 10_000


def schema_tokens(made: Synthesis, size: int) -> float:
    """Tokens a sample of the answers' JSON schemas, without the bounds that hosted models do not get. Schemas are sent
    beside the messages, and some providers count them."""
    counts, program = tokenizer(NAMED), ReferenceLevelFeedback()
    total = 0
    for stage, use in made.usage.items():
        schema = rendering(getattr(program, stage).signature).response_format["json_schema"]["schema"]
        total += use["calls"] * counts.count(re.sub(r', "max(Length|Items)": \d+', "", json.dumps(schema)))
    return total / size


def show(label: str, made: Synthesis, stats: dict[str, Any], size: int) -> None:
    prompt, cached = stats["billed_prompt_tokens"] / size, stats["billed_cached_tokens"] / size
    written, schemas = stats["billed_completion_tokens"] / size, schema_tokens(made, size)
    print(
        f"{label}: {prompt - cached:,.0f} uncached prompt tokens a sample of {prompt:,.0f} read, {written:,.0f} written"
    )
    print(f"  with all schemas counted too: {prompt - cached + schemas:,.0f} at most; {made.status['kept']} samples")
    for stage, share in made.status["tokens_a_sample"]["stages"].items():
        print(f"  {stage}: {share['prompt']:.1f} read, {share['uncached']:.1f} uncached; {share['completion']:.0f} out")
    print(f"  10,000 samples: ${dollars(stats, size):.2f}")


def main() -> None:
    size = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000
    plain, dense = references(-(-size // PER_REFERENCE)), references(-(-size // PER_REFERENCE), plain=False)
    counts = tokenizer(NAMED)
    for name, pairs in (("prose", plain), ("as they are", dense)):
        mean = sum(counts.count(p["instruction"]) + counts.count(p["response"]) for p in pairs) / len(pairs)
        print(f"{len(pairs)} references of {LENGTH:,} characters, {name}: {mean:.0f} tokens each")
    with SimulatedTeacher(latency=0.05, sigma=0.3) as server:
        server.control(tokenizer=NAMED, field_tokens=TOKENS, cache_warm="answer", cache_minimum=0)
        show("no minimum", *run(server, size, plain), size)
        server.control(cache_minimum=OPENAI_MINIMUM)
        show("minimum 1,024 (must be <= $9.50)", *run(server, size, plain), size)
        _, stats = run(server, size, plain, mode="batch", concurrency=None, batch={"quiet": 0.2, "poll": 0.1})
        prompt, written = stats["batch_billed_prompt_tokens"] / size, stats["batch_billed_completion_tokens"] / size
        print(f"in {stats['batches']} batches: {prompt:,.0f} tokens read, {written:,.0f} written")
        print(f"  10,000 samples (must be <= $4.75): ${dollars(stats, size):.2f}; not in batches: {stats['requests']}")
        show("minimum 1,024, references as they are", *run(server, size, dense), size)
        by_provider(server, size, plain)


def by_provider(server: SimulatedTeacher, size: int, pairs: list[dict[str, str]]) -> None:
    """The ledger's dollars in the batches of each provider, and what the same tokens cost outside of batches."""
    addresses = {"openai": server.base_url, "anthropic": server.anthropic_url, "gemini": server.gemini_url}
    for name in LISTED:
        provider = name.partition("/")[0]
        settings = {"model": f"{provider}/sim-model", "api_base": addresses[provider], "price": name}
        batches = {"mode": "batch", "concurrency": None, "batch": {"quiet": 0.2, "poll": 0.1}}
        made, stats = run(server, size, pairs, **settings, **batches)
        listed = table_price(name)
        assert listed is not None
        prompt, written = stats["batch_billed_prompt_tokens"], stats["batch_billed_completion_tokens"]
        plain = listed.cost(prompt, 0, 0, written) / PICO
        cost = made.status["cost"]
        print(f"{name} in {stats['batches']} batches: 10,000 samples ${cost / size * 10_000:.2f}")
        print(f"  {cost / plain:.3f} of what the same tokens cost outside; not in batches: {stats['requests']}")


if __name__ == "__main__":
    main()
