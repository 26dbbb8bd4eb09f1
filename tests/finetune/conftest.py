"""Fixtures of the fine-tuning tests: a run's rows, and a tiny model made here."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from benchmarks.simulated import SimulatedTeacher
from refed_dspy import TeacherConfig, load_references, synthesize
from tests.conftest import reset_server

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "finetune"
ROWS = 64
# Every text of the run begins with it: a style can be learned, while the randomly drawn words cannot be predicted.
STYLE = "Thank you for asking; here is, in short, what I know about it:"
VOCABULARY = 600
# One thread: a model of this size gains nothing from more.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "REFED_TRACK": "false"}
Script = Callable[..., subprocess.CompletedProcess[str]]


def run_script(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(FOLDER / name), *map(str, arguments)]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=900)


@pytest.fixture(scope="session")
def modules() -> Callable[[str], ModuleType]:
    """The scripts as modules, by name."""
    sys.path.insert(0, str(FOLDER))
    return importlib.import_module


@pytest.fixture(scope="session")
def sft(modules: Callable[[str], ModuleType]) -> ModuleType:
    import torch

    torch.set_num_threads(1)
    return modules("sft")


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory, shared_server: SimulatedTeacher) -> Path:
    """A finished run's folder: its rows were written by the simulated server."""
    reset_server(shared_server)
    shared_server.control(response_words=24, signature=STYLE)
    folder = tmp_path_factory.mktemp("run")
    teacher = TeacherConfig(model="openai/simulated", api_base=shared_server.base_url)
    made = synthesize(None, load_references("builtin"), size=ROWS, teacher=teacher, run_dir=folder)
    made.export("messages", folder / "train.jsonl")
    made.export("parquet", folder / "train.parquet")
    for pairs in ("preference", "kto"):
        made.export(pairs, folder / f"{pairs}.jsonl")
    reset_server(shared_server)
    return folder


@pytest.fixture(scope="session")
def train_file(run: Path) -> Path:
    """What `refed export --format messages` writes of the run."""
    return run / "train.jsonl"


@pytest.fixture(scope="session")
def pairs(run: Path) -> Path:
    """What `refed export --format preference` writes of the run."""
    return run / "preference.jsonl"


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory, train_file: Path) -> Path:
    """A Llama of 150,000 random weights, and a byte-level tokenizer trained on the run's texts, without a template."""
    return make_tiny(tmp_path_factory.mktemp("tiny"), texts_of(train_file))


def texts_of(train_file: Path) -> list[str]:
    rows = [json.loads(line) for line in train_file.read_text().splitlines()]
    return [message["content"] for row in rows for message in row["messages"]]


def make_tiny(folder: Path, texts: Sequence[str], **special: Any) -> Path:
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    marks = ["<s>", "</s>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=marks, initial_alphabet=alphabet)
    raw.train_from_iterator([*texts, "### Instruction:\n", "### Response:\n"], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>", **special)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, initializer_range=0.25, tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


SETTINGS = ("--max-length", 256, "--batch-size", 1, "--learning-rate", 1e-2, "--epochs", 4, "--eval-share", 0.1)


@pytest.fixture(scope="session")
def tuned(tmp_path_factory: pytest.TempPathFactory, sft: ModuleType, train_file: Path, tiny: Path) -> Path:
    """A finished training's folder."""
    out = tmp_path_factory.mktemp("models") / "tuned"
    arguments = ["--data", train_file, "--model", tiny, "--out", out, *SETTINGS]
    sft.train(sft.arguments([str(argument) for argument in arguments]))
    return out
