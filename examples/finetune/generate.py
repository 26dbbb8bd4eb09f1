"""Answer prompts with a model, with or without an adapter that sft.py made.

    python generate.py --model Qwen/Qwen2.5-0.5B --adapter tuned --prompts prompts.jsonl --out answers.jsonl

A row of --prompts has an `instruction`. --out gets JSON lines of instruction and output. It is written whole, and an
existing file is left alone. Decoding is greedy unless --temperature is above 0. Exit codes as in sft.py.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sft import BadInput, load_model, load_tokenizer


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Answers of a model to prompts.")
    parser.add_argument("--model", required=True, help="the causal language model, as sft.py was given it")
    parser.add_argument("--adapter", type=Path, help="a folder that sft.py made; unset, the model itself answers")
    parser.add_argument("--chat-template", type=Path, help="the Jinja file that sft.py was given, where it was")
    parser.add_argument("--prompts", type=Path, required=True, help="JSONL with an instruction in each row")
    parser.add_argument("--out", type=Path, required=True, help="JSONL of instruction and output")
    parser.add_argument("--max-new-tokens", type=int, default=1024, help="an answer is cut there (default 1024)")
    parser.add_argument("--temperature", type=float, default=0.0, help="0: greedy (default 0)")
    parser.add_argument("--batch-size", type=int, default=8, help="prompts answered at once (default 8)")
    parser.add_argument("--seed", type=int, default=0, help="of a temperature above 0 (default 0)")
    return parser.parse_args(argv)


def generate(args: argparse.Namespace) -> None:
    """Write the answers. Raises BadInput."""
    import torch
    from transformers import set_seed

    instructions = _instructions(args.prompts)
    tokenizer = load_tokenizer(str(args.adapter or args.model), args.chat_template)
    model = load_model(args.model)
    if args.adapter:
        from peft import PeftModel

        try:
            model = PeftModel.from_pretrained(model, str(args.adapter))
        except (OSError, ValueError, RuntimeError) as error:
            raise BadInput(f"{args.adapter}: is no adapter of {args.model}: {error}") from None
    model = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    set_seed(args.seed)
    temporary = args.out.with_name(f".{args.out.name}")
    with temporary.open("w", encoding="utf-8") as file:
        for instruction, output in zip(instructions, _answers(instructions, model, tokenizer, args), strict=True):
            file.write(json.dumps({"instruction": instruction, "output": output}, ensure_ascii=False) + "\n")
    temporary.replace(args.out)


def _answers(instructions: list[str], model: Any, tokenizer: Any, args: argparse.Namespace) -> Iterator[str]:
    import torch

    tokenizer.padding_side = "left"
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    stops = model.generation_config.eos_token_id
    stops = {tokenizer.eos_token_id, *(stops if isinstance(stops, list) else [stops])} - {None}
    drawn = {"do_sample": True, "temperature": args.temperature} if args.temperature else {"do_sample": False}
    for first in range(0, len(instructions), args.batch_size):
        batch = [[{"role": "user", "content": text}] for text in instructions[first : first + args.batch_size]]
        asked = tokenizer.apply_chat_template(
            batch, add_generation_prompt=True, return_dict=True, return_tensors="pt", padding=True
        ).to(model.device)
        with torch.inference_mode():
            written = model.generate(
                **asked,
                **drawn,
                max_new_tokens=args.max_new_tokens,
                eos_token_id=sorted(stops),
                pad_token_id=tokenizer.pad_token_id,
            )
        texts = tokenizer.batch_decode(written[:, asked["input_ids"].shape[1] :], skip_special_tokens=True)
        yield from (text.strip() for text in texts)
        print(f"{min(first + args.batch_size, len(instructions))} of {len(instructions)} answered", flush=True)


def _instructions(path: Path) -> list[str]:
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
        texts = [row["instruction"] for row in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{path}: cannot be read as JSONL with an instruction in each row: {error}") from None
    if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise BadInput(f"{path}: an instruction has no text, or there is none")
    return texts


def main() -> int:
    args = arguments()
    if args.out.is_file():
        print(f"{args.out}: is there; nothing is left to do")
        return 0
    try:
        generate(args)
    except BadInput as error:
        print(f"generate: {' '.join(str(error).split())[:500]}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
