"""Train a language model to prefer the improved responses: TRL's DPOTrainer with LoRA, on the pairs of a refed run.

    refed export runs/first --format preference --out pairs.jsonl
    python dpo.py --data pairs.jsonl --model tuned-and-merged --out preferred

Start from a model that answers instructions: an instruct model, or one that sft.py has tuned. The reference model of
the loss is the same model without the adapter. The same command continues a stopped training from its last checkpoint,
and does nothing after a finished one. In --out: the adapter, its tokenizer, and training.json. Exit codes as sft.py's.
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


def fitting(pairs: list[dict[str, Any]], tokenizer: Any, args: argparse.Namespace) -> list[dict[str, Any]]:
    """The pairs of which neither conversation is longer than --max-length tokens. Raises BadInput where too few are."""

    def length(messages: list[dict[str, str]]) -> int:
        return len(tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False))

    fit = [p for p in pairs if max(length(p["prompt"] + p[kind]) for kind in ("chosen", "rejected")) <= args.max_length]
    if lost := len(pairs) - len(fit):
        print(f"{lost} of {len(pairs)} pairs are longer than --max-length {args.max_length}, and left out")
    if len(fit) < (2 if args.eval_share else 1):
        raise sft.BadInput(f"{args.data}: {len(fit)} pairs of at most {args.max_length} tokens are too few to train on")
    return fit


def make_trainer(args: argparse.Namespace, model: Any, tokenizer: Any, pairs: list[dict[str, Any]]) -> Any:
    """TRL's trainer. Without a model to compare with it takes the one it trains, without its adapter."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from trl import DPOConfig, DPOTrainer

    rows, held_out = Dataset.from_list(pairs), None
    if args.eval_share:
        split = rows.train_test_split(max(1, round(args.eval_share * len(rows))), seed=args.seed)
        rows, held_out = split["train"], split["test"]
    gpu = torch.cuda.is_available()
    settings = DPOConfig(
        output_dir=str(args.out / "checkpoints"), seed=args.seed, num_train_epochs=args.epochs, beta=args.beta,
        learning_rate=args.learning_rate, per_device_train_batch_size=1, per_device_eval_batch_size=1,
        gradient_accumulation_steps=args.batch_size, max_length=args.max_length, bf16=model.dtype == torch.bfloat16,
        gradient_checkpointing=gpu, dataloader_pin_memory=gpu, report_to="none",
        eval_strategy="epoch" if held_out else "no", eval_on_start=held_out is not None,
        save_steps=args.save_steps, save_total_limit=2, logging_steps=0.02,  # of all steps
    )  # fmt: skip
    sizes = {"r": args.lora_rank, "lora_alpha": 2 * args.lora_rank}
    lora = LoraConfig(**sizes, lora_dropout=0.05, target_modules="all-linear", task_type="CAUSAL_LM")
    return DPOTrainer(model, None, settings, None, rows, held_out, tokenizer, peft_config=lora)


def train(args: argparse.Namespace) -> None:
    """Train, or continue a training. Raises BadInput."""
    made_by, checkpoint = sft.start(args)
    if (args.out / sft.RESULT).is_file():
        print(f"{args.out}: is finished; nothing is left to do")
        return
    read = read_pairs(args.data)
    tokenizer, model = sft.load_tokenizer(args.model, args.chat_template), sft.load_model(args.model)
    pairs = fitting(read, tokenizer, args)
    facts = {**made_by, "rows": len(read), "left_out": len(read) - len(pairs)}
    sft.finish(args, make_trainer(args, model, tokenizer, pairs), facts, checkpoint)


if __name__ == "__main__":
    sys.exit(sft.main("dpo", arguments(), train))
