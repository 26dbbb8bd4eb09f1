"""Train a language model to prefer the improved responses: TRL's DPOTrainer with LoRA, on the pairs of a refed run.

    refed export runs/first --format preference --out pairs.jsonl
    python dpo.py --data pairs.jsonl --model tuned --out preferred

Start from a model that answers instructions: an instruct model, or the folder of one that sft.py has tuned, whose
adapter is merged into it first. The reference model of the loss is that model, without the new adapter. The same
command continues a stopped training from its last checkpoint, and does nothing after a finished one. In --out: the
adapter, its tokenizer, and training.json. Exit codes as sft.py's.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import sft

NUMBERS: sft.Numbers = {
    **{name: sft.NUMBERS[name] for name in sft.NUMBERS if name not in {"learning_rate", "epochs"}},
    "epochs": (1.0, 1000, "times that each pair is seen"),
    "learning_rate": (5e-6, 1, "at its highest; it falls in a line"),
    "beta": (0.1, 100, "how close to the reference model the model stays"),
}


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The settings. A value out of range ends the program with code 2."""
    parser = argparse.ArgumentParser(description="LoRA training on preference pairs of refed, by TRL.")
    parser.add_argument("--data", type=Path, required=True, help="JSONL of refed export --format preference")
    return sft.parsed(parser, argv, NUMBERS)


def read_pairs(path: Path) -> list[dict[str, Any]]:
    """The pairs, as TRL reads them. Raises BadInput."""
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
    except (OSError, ValueError) as error:
        raise sft.BadInput(f"{path}: cannot be read: {error}; give the JSONL of --format preference") from None
    names = ("prompt", "chosen", "rejected")
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict) or not all(isinstance(row.get(name), list) and row[name] for name in names):
            raise sft.BadInput(f"{path} row {number}: needs prompt, chosen and rejected, each a list of messages")
    return [{name: row[name] for name in names} for row in rows]


def pair_lengths(pairs: list[dict[str, Any]], tokenizer: Any) -> list[int]:
    """The tokens of each pair's longer conversation."""

    def length(messages: list[dict[str, str]]) -> int:
        return len(tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False))

    return [max(length(pair["prompt"] + pair[kind]) for kind in ("chosen", "rejected")) for pair in pairs]


def make_trainer(args: argparse.Namespace, model: Any, tokenizer: Any, pairs: list[dict[str, Any]]) -> Any:
    """TRL's trainer. Without a model to compare with it takes the one it trains, without its adapter."""
    from trl import DPOConfig, DPOTrainer

    rows, kept_back = sft.held_out(pairs, args)
    settings = DPOConfig(**sft.settings_of(args, model), beta=args.beta)
    return DPOTrainer(model, None, settings, None, rows, kept_back, tokenizer, peft_config=sft.lora(args))


DPO = sft.Recipe("dpo", read_pairs, pair_lengths, make_trainer)

if __name__ == "__main__":
    sys.exit(sft.main(arguments(), DPO))
