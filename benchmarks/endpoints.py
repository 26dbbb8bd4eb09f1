"""What endpoints do to a run: two that serve the same model name, and one that lies about the tokens it bills.

`python -m benchmarks.endpoints [mixed] [lies]`. `mixed`: two runs at once, twice: whose answers does each hold?
`lies`: every kind of `benchmarks.lies` against a cap, at OpenAI's and Anthropic's wire and in batches, with tokens by
o200k_base: dollars over the cap by the server's bill.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import refed_dspy
from benchmarks.lies import LIES, WITHIN
from benchmarks.runs import REFERENCES, teacher_config
from benchmarks.simulated import SimulatedTeacher
from refed_dspy import TeacherConfig
from refed_dspy.errors import RefedError
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.spending import spent
from refed_dspy.runs.result import Synthesis

SIZE = 200
PRICE = {"prompt": 1.0, "completion": 4.0, "cached": 0.1, "batch": 0.5}
CAP = 0.3
WAYS: dict[str, tuple[str, dict[str, str]]] = {
    "openai": ("sim/sim-model", {}),
    "anthropic": ("anthropic/sim-model", {}),
    "batch": ("sim/sim-model", {"mode": "batch"}),
}


async def both(servers: dict[str, SimulatedTeacher], home: Path) -> dict[str, Synthesis]:
    runs = (
        refed_dspy.asynthesize(None, REFERENCES, size=SIZE, teacher=teacher_config(server, 40), run_dir=home / name)
        for name, server in servers.items()
    )
    return dict(zip(servers, await asyncio.gather(*runs), strict=True))


def mixed() -> None:
    with (
        SimulatedTeacher(latency=0.02) as northern,
        SimulatedTeacher(latency=0.02) as southern,
        tempfile.TemporaryDirectory() as folder,
    ):
        servers = {"northern": northern, "southern": southern}
        for name, server in servers.items():
            server.control(signature=name)
        mixed = 0
        for again in range(2):
            made = asyncio.run(both(servers, Path(folder) / str(again)))
            for name, run in made.items():
                texts = [sample.improved_response for sample in run.samples]
                mixed += sum(not text.startswith(name) for text in texts)
                assert len(texts) == SIZE
        calls = {name: server.stats()["answered"] for name, server in servers.items()}
    print(f"{4 * SIZE} rows of four runs: {mixed} hold the other endpoint's text (must be 0); calls {calls}")


def bill(stats: Mapping[str, int]) -> float:
    """Dollars that the server charges for all its answers."""
    cached = stats["billed_cached_tokens"]
    tokens = {"prompt": stats["billed_prompt_tokens"] - cached, "cached": cached}
    tokens["completion"] = stats["billed_completion_tokens"]
    batched = {"prompt": stats["batch_billed_prompt_tokens"], "completion": stats["batch_billed_completion_tokens"]}
    return sum(
        PRICE[name] * share * count / 1e6
        for counts, share in ((tokens, 1.0), (batched, PRICE["batch"]))
        for name, count in counts.items()
    )


def lied_to(server: SimulatedTeacher, folder: Path, lie: str, way: str) -> tuple[float, float, int]:
    """Dollars that the server bills and that the ledger says, and the samples of a run under CAP."""
    server.reset()
    server.control(lie=lie)
    model, settings = WAYS[way]
    values = {
        "model": model,
        "api_base": server.base_url,
        "price": PRICE,
        "max_tokens": 1024,
        "concurrency": 20,
        "retries": 1,
    }
    teacher = TeacherConfig.model_validate(values | {"batch": {"quiet": 0.05, "poll": 0.05}} | settings)
    try:
        refed_dspy.synthesize(None, REFERENCES, size=1000, teacher=teacher, run_dir=folder, max_cost=CAP)
    except RefedError as error:
        print(f"  ({way}, {lie}: {error})", file=sys.stderr)
    with Ledger.read(folder) as ledger:
        return bill(server.stats()), spent(ledger).cost, ledger.kept()


def lies() -> None:
    logging.getLogger("refed_dspy").setLevel(logging.ERROR)
    with SimulatedTeacher(latency=0.01, sigma=0.3) as server, tempfile.TemporaryDirectory() as home:
        server.control(tokenizer="o200k_base", cache_warm="answer", batch_seconds=0.05)
        over = dict.fromkeys(WAYS, 0)
        for number, lie in enumerate(["", *LIES, *WITHIN]):
            for way in WAYS:
                billed, charged, kept = lied_to(server, Path(home) / f"{number} {way}", lie, way)
                over[way] += lie in LIES and billed > CAP
                figures = f"billed ${billed:.4f}, charged ${charged:.4f}, {kept} samples"
                print(f"{lie or 'the truth'}, {way}: {figures}", flush=True)
    print(f"{len(LIES)} kinds of lying usage against a cap of ${CAP}: over it by the server's bill: {over} (must be 0)")


def main() -> None:
    for name in sys.argv[1:] or ("mixed", "lies"):
        {"mixed": mixed, "lies": lies}[name]()


if __name__ == "__main__":
    main()
