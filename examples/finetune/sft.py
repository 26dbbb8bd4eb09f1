"""Fine-tune a causal language model on data made by refed: TRL's SFTTrainer with LoRA, a chat template and packing.

    refed export runs/first --format messages --out train.jsonl
    python sft.py --data train.jsonl --model Qwen/Qwen2.5-0.5B --out tuned

The loss is over the answer alone. The same command continues a stopped training from its last checkpoint, and does
nothing after a finished one. In --out: the adapter, its tokenizer with the chat template, and training.json.
Exit codes: 0 done, 1 failed, 2 bad input, 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

Numbers: TypeAlias = dict[str, tuple[float, float, str]]
Lengths: TypeAlias = Callable[[list[dict[str, Any]], Any], list[int]]
NUMBERS: Numbers = {
    "epochs": (3.0, 1000, "times that each sample is seen"),
    "learning_rate": (2e-4, 1, "at its highest: 3%% of the steps rise to it, then it falls as a cosine"),
    "batch_size": (8, 2**16, "packs of --max-length tokens in a step"),
    "max_length": (2048, 2**20, "tokens of a pack; longer samples are left out"),
    "lora_rank": (16, 2**12, "of the adapter on every linear layer; alpha is twice that"),
    "eval_share": (0.05, 0.9, "share of the samples held out for the evaluation loss; 0: none"),
    "seed": (0, 2**31, "of the split, the adapter's first weights, the order and the dropout"),
    "save_steps": (50, 2**31, "steps between checkpoints"),
}
"""Each setting's default, maximum and meaning. The defaults are ours: the paper states none that we know of."""
TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role == 'assistant' %}{{ '### Response:\n' + message.content | trim + eos_token + '\n' }}"
    "{% elif message.role == 'user' %}{{ '### Instruction:\n' + message.content | trim + '\n\n' }}"
    "{% else %}{{ message.content | trim + '\n\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '### Response:\n' }}{% endif %}"
)
"""For a tokenizer without one. It needs no new tokens, so no embedding has to be trained."""
RESULT = "training.json"  # losses, settings and the data's digest; it is written last


class BadInput(Exception):
    """The input cannot be used for training. The message is one line that says what to do."""


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The settings. A value out of range ends the program with code 2."""
    parser = argparse.ArgumentParser(description="LoRA fine-tuning on a refed data set, by TRL.")
    parser.add_argument("--data", type=Path, required=True, help="JSONL of messages, or refed's own JSONL or Parquet")
    return parsed(parser, argv, NUMBERS)


def parsed(parser: argparse.ArgumentParser, argv: list[str] | None, numbers: Numbers) -> argparse.Namespace:
    """The settings of a training: the model, the folder, and `numbers`, each with its default, maximum and meaning."""
    parser.add_argument("--model", required=True, help="a causal language model: a folder, or a name on the Hub")
    parser.add_argument("--out", type=Path, required=True, help="a folder for the adapter")
    parser.add_argument("--chat-template", type=Path, help="a Jinja file, instead of the tokenizer's own template")
    for name, (default, _, meaning) in numbers.items():
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, type=type(default), default=default, help=f"{meaning} (default {default})")
    args = parser.parse_args(argv)
    for name, (_, most, _) in numbers.items():
        if not (0 if name in {"seed", "eval_share"} else 1e-9) <= getattr(args, name) <= most:
            parser.error(f"--{name.replace('_', '-')} {getattr(args, name)} is out of range")
    return args


def read_samples(path: Path) -> list[dict[str, Any]]:
    """Each row as TRL's prompt and completion: the last answer, and what comes before it. Raises BadInput."""
    try:
        if path.suffix.lower() == ".parquet":
            import pyarrow.parquet as pq

            rows = pq.read_table(path).to_pylist()
        else:
            rows = [json.loads(line) for line in path.read_bytes().decode("utf-8-sig").split("\n") if line.strip()]
    except (OSError, ValueError) as error:  # broken JSON, Parquet or UTF-8 is a ValueError
        raise BadInput(f"{path}: cannot be read: {error}; give JSONL or Parquet") from None
    if not rows:
        raise BadInput(f"{path}: has no rows; export a run with samples in it")
    return [_sample(row, f"{path} row {number}") for number, row in enumerate(rows, start=1)]


def _sample(row: Any, where: str) -> dict[str, Any]:
    row = row if isinstance(row, dict) else {}
    messages = row.get("messages") or [
        {"role": "user", "content": row.get("instruction")},
        {"role": "assistant", "content": row.get("improved_response")},
    ]
    messages = [m if isinstance(m, dict) else {} for m in messages] if isinstance(messages, list) else []
    whole = all(isinstance(text := message.get("content"), str) and text.strip() for message in messages)
    if not whole or [message.get("role") for message in messages[-2:]] != ["user", "assistant"]:
        raise BadInput(
            f"{where}: needs messages that end in a user's and the assistant's, or instruction and improved_response, "
            f"each with a text; its columns: {', '.join(map(str, row)) or 'none'}"
        )
    messages = [{"role": str(message.get("role")), "content": message["content"]} for message in messages]
    return {"prompt": messages[:-1], "completion": messages[-1:]}


def load_tokenizer(name: str, chat_template: Path | None = None) -> Any:
    """The tokenizer, with a chat template whose answers end in its `eos_token`. Raises BadInput where it has none."""
    from jinja2 import TemplateError
    from transformers import AutoTokenizer

    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
        if chat_template is not None:
            tokenizer.chat_template = chat_template.read_text(encoding="utf-8")
        if not tokenizer.chat_template and tokenizer.eos_token:
            begins = tokenizer.bos_token_id in tokenizer("a")["input_ids"][:1]
            tokenizer.chat_template = "{{ bos_token }}" * begins + TEMPLATE
        ids = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
    except (OSError, ValueError, TypeError, TemplateError) as error:
        raise BadInput(f"{name}: its tokenizer or chat template cannot be used: {error}") from None
    last = next((token for token in reversed(ids) if tokenizer.decode([token]).strip()), None)
    if last not in {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}:
        raise BadInput(f"{name}: its chat template ends no answer with a token to stop at; give a --chat-template")
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(last)  # else a tuned base model would never stop
    return tokenizer


def load_model(name: str) -> Any:
    """The model, in bfloat16 where this machine computes in it; with the adapter merged into it, where `name` is a
    folder of one. Raises BadInput where it cannot be loaded."""
    import torch
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM

    has_bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    dtype = torch.bfloat16 if has_bf16 else torch.float32
    try:
        if Path(name, "adapter_config.json").is_file():
            return AutoPeftModelForCausalLM.from_pretrained(name, dtype=dtype).merge_and_unload()
        return AutoModelForCausalLM.from_pretrained(name, dtype=dtype)
    except (OSError, ValueError) as error:
        raise BadInput(f"{name}: cannot be loaded: {error}; name a causal language model") from None


def sample_lengths(samples: list[dict[str, Any]], tokenizer: Any) -> list[int]:
    """The tokens of each sample."""
    texts = [tokenizer.apply_chat_template(row["prompt"] + row["completion"], tokenize=False) for row in samples]
    return [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]


def fitting(
    rows: list[dict[str, Any]], model: Any, tokenizer: Any, args: argparse.Namespace, lengths: Lengths = sample_lengths
) -> list[dict[str, Any]]:
    """The rows of at most --max-length tokens; a cut answer would not teach the model to stop. Raises BadInput where
    the model's window is smaller, or too few rows are left."""
    room = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if room is not None and args.max_length > room:
        raise BadInput(f"{args.model}: has room for {room} tokens; lower --max-length from {args.max_length}")
    fit = [row for row, length in zip(rows, lengths(rows, tokenizer), strict=True) if length <= args.max_length]
    if lost := len(rows) - len(fit):
        print(f"{lost} of {len(rows)} samples are longer than --max-length {args.max_length}, and left out")
    if len(fit) < (2 if args.eval_share else 1):
        raise BadInput(f"{args.data}: {len(fit)} samples of at most {args.max_length} tokens are too few to train on")
    return fit


def start(args: argparse.Namespace) -> tuple[dict[str, Any], str | None]:
    """What must not change between two starts in the folder, and the checkpoint to go on from, or None. Raises BadInput
    where the folder holds another training."""
    settings = args.out / "settings.json"
    aside = {"data", "out", "chat_template", "save_steps"}
    made_by: dict[str, Any] = {name: value for name, value in vars(args).items() if name not in aside}
    try:
        for name in ("data", "chat_template"):
            if path := getattr(args, name):
                made_by[f"{name}_sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
        there = json.loads(settings.read_text()) if settings.is_file() else made_by
        if changed := [name for name in {**there, **made_by} if there.get(name) != made_by.get(name)]:
            raise BadInput(f"{args.out}: holds a training with another {', '.join(changed)}; name another --out")
        args.out.mkdir(parents=True, exist_ok=True)
        write_json(settings, made_by)
    except OSError as error:
        raise BadInput(f"{error.filename or args.out}: {error.strerror}; choose another file or folder") from None
    # trainer_state.json is written last: a checkpoint without it was cut off.
    whole = [state.parent for state in args.out.glob("checkpoints/checkpoint-*/trainer_state.json")]
    last = max(whole, key=lambda folder: int(folder.name.rpartition("-")[2]), default=None)
    return made_by, None if last is None else str(last)


def held_out(samples: list[dict[str, Any]], args: argparse.Namespace) -> tuple[Any, Any]:
    """The samples to train on, and those for the evaluation loss, or None."""
    from datasets import Dataset

    rows = Dataset.from_list(samples)
    if not args.eval_share:
        return rows, None
    split = rows.train_test_split(max(1, round(args.eval_share * len(rows))), seed=args.seed)
    return split["train"], split["test"]


def settings_of(args: argparse.Namespace, model: Any) -> dict[str, Any]:
    """What the settings of TRL's trainers have in common."""
    import torch

    gpu, evaluated = torch.cuda.is_available(), bool(args.eval_share)
    return {
        "output_dir": str(args.out / "checkpoints"), "seed": args.seed, "num_train_epochs": args.epochs,
        "learning_rate": args.learning_rate, "per_device_train_batch_size": 1, "per_device_eval_batch_size": 1,
        "gradient_accumulation_steps": args.batch_size, "max_length": args.max_length,
        "bf16": model.dtype == torch.bfloat16, "gradient_checkpointing": gpu, "dataloader_pin_memory": gpu,
        "report_to": "none", "eval_strategy": "epoch" if evaluated else "no", "eval_on_start": evaluated,
        "save_steps": args.save_steps, "save_total_limit": 2, "logging_steps": 0.02,  # of all steps
    }  # fmt: skip


def lora(args: argparse.Namespace) -> Any:
    """The adapter."""
    from peft import LoraConfig

    sizes = {"r": args.lora_rank, "lora_alpha": 2 * args.lora_rank}
    return LoraConfig(**sizes, lora_dropout=0.05, target_modules="all-linear", task_type="CAUSAL_LM")


def make_trainer(args: argparse.Namespace, model: Any, tokenizer: Any, samples: list[dict[str, Any]]) -> Any:
    """TRL's trainer. It packs whole samples; attention and positions start afresh at each."""
    from trl import SFTConfig, SFTTrainer

    rows, kept_back = held_out(samples, args)
    settings = SFTConfig(
        **settings_of(args, model), lr_scheduler_type="cosine", warmup_steps=0.03,  # of all steps
        packing=True, completion_only_loss=True, eos_token=tokenizer.eos_token,
    )  # fmt: skip
    return SFTTrainer(model, settings, None, rows, kept_back, tokenizer, peft_config=lora(args))


class Recipe(NamedTuple):
    """What is read, how long it is, and what trains on it. `name` is the script's."""

    name: str
    read: Callable[[Path], list[dict[str, Any]]]
    lengths: Lengths
    make_trainer: Callable[[argparse.Namespace, Any, Any, list[dict[str, Any]]], Any]


SFT = Recipe("sft", read_samples, sample_lengths, make_trainer)


def train(args: argparse.Namespace, recipe: Recipe = SFT) -> None:
    """Train, or continue a training. Raises BadInput."""
    made_by, checkpoint = start(args)
    if (args.out / RESULT).is_file():
        print(f"{args.out}: is finished; nothing is left to do")
        return
    read = recipe.read(args.data)
    tokenizer, model = load_tokenizer(args.model, args.chat_template), load_model(args.model)
    samples = fitting(read, model, tokenizer, args, recipe.lengths)
    trainer = recipe.make_trainer(args, model, tokenizer, samples)
    print(f"going on from {checkpoint}" if checkpoint else f"training on {len(samples)} samples", flush=True)
    done = trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model(str(args.out))
    if trainer.is_world_process_zero():
        kinds, log = ("loss", "eval_loss"), trainer.state.log_history
        facts = {
            **made_by, "rows": len(read), "left_out": len(read) - len(samples), "steps": trainer.state.global_step,
            "losses": [{k: row[k] for k in ("step", "epoch", kind)} for row in log for kind in kinds if kind in row],
            "versions": {name: version(name) for name in ("torch", "transformers", "trl", "peft", "datasets")},
            "device": str(model.device), "dtype": str(model.dtype), "seconds": done.metrics["train_runtime"],
        }  # fmt: skip
        write_json(args.out / RESULT, facts)
        shutil.rmtree(args.out / "checkpoints")


def write_json(path: Path, value: Any) -> None:
    """Write the file whole, or leave what was there."""
    (temporary := path.with_name(f".{path.name}")).write_text(json.dumps(value, indent=1) + "\n")
    temporary.replace(path)


def main(args: argparse.Namespace, recipe: Recipe = SFT) -> int:
    """The exit code of a script, whose errors are told in one line."""
    try:
        train(args, recipe)
        return 0
    except BadInput as error:
        code, why = 2, " ".join(str(error).split())[:500]
    except KeyboardInterrupt:
        code, why = 130, f"stopped; the same command goes on from the last checkpoint in {args.out}"
    except RuntimeError as error:
        if "out of memory" not in str(error):
            raise
        code, why = 1, "the GPU's memory is full: lower --max-length or --lora-rank, or take a smaller model"
    print(f"{recipe.name}: {why}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main(arguments()))
