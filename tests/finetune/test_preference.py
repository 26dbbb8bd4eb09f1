"""Training on pairs: the files of --format preference and kto, read by TRL's trainers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytest.importorskip("trl", reason="make finetune brings it")

from tests.finetune.conftest import ROWS, run_script

pytestmark = pytest.mark.finetune
SETTINGS = ("--max-length", 256, "--batch-size", 1, "--learning-rate", 3e-3, "--epochs", 3, "--eval-share", 0.1)


def losses(out: Path, kind: str) -> list[float]:
    return [entry[kind] for entry in json.loads((out / "training.json").read_text())["losses"] if kind in entry]


@pytest.fixture(scope="module")
def preferred(
    tmp_path_factory: pytest.TempPathFactory, modules: Callable[[str], ModuleType], pairs: Path, tiny: Path
) -> Path:
    """A finished training's folder."""
    out, sft, dpo = tmp_path_factory.mktemp("models") / "preferred", modules("sft"), modules("dpo")
    arguments = ("--data", pairs, "--model", tiny, "--out", out, *SETTINGS)
    sft.train(dpo.arguments([str(part) for part in arguments]), dpo.DPO)
    return out


def test_the_loss_of_preference_falls(preferred: Path) -> None:
    assert abs(losses(preferred, "eval_loss")[0] - 0.693) < 0.01, "at first the model is its reference"
    trained = losses(preferred, "loss")
    assert sum(trained[-5:]) < 0.8 * sum(trained[:5])
    facts = json.loads((preferred / "training.json").read_text())
    assert facts["rows"] == ROWS and facts["beta"] == 0.1
    assert (preferred / "adapter_model.safetensors").is_file()


def test_an_adapter_is_merged_into_its_model_first(
    modules: Callable[[str], ModuleType], tuned: Path, tiny: Path
) -> None:
    merged, plain = (dict(modules("sft").load_model(str(name)).named_parameters()) for name in (tuned, tiny))
    assert merged.keys() == plain.keys(), "no adapter beside the weights"
    assert any(not merged[name].equal(plain[name]) for name in plain)


def test_the_same_command_does_nothing_after_the_end(preferred: Path, pairs: Path, tiny: Path) -> None:
    again = run_script("dpo.py", "--data", pairs, "--model", tiny, "--out", preferred, *SETTINGS)
    assert again.returncode == 0 and "is finished" in again.stdout


@pytest.mark.parametrize("row", ["{", "{}", '{"prompt": [], "chosen": [{}], "rejected": [{}]}', '{"prompt": "q"}'])
def test_a_file_of_something_else_is_refused_in_a_line(tmp_path: Path, tiny: Path, row: str) -> None:
    (tmp_path / "bad.jsonl").write_text(row + "\n")
    refused = run_script("dpo.py", "--data", tmp_path / "bad.jsonl", "--model", tiny, "--out", tmp_path / "out")
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1 and refused.stderr.startswith("dpo: ")


def test_a_length_beyond_the_model_s_window_is_refused(tmp_path: Path, pairs: Path, tiny: Path) -> None:
    refused = run_script("dpo.py", "--data", pairs, "--model", tiny, "--out", tmp_path / "out", "--max-length", 4_096)
    assert refused.returncode == 2 and "has room for 512 tokens" in refused.stderr


def test_kto_s_trainer_reads_its_format(
    tmp_path: Path, modules: Callable[[str], ModuleType], run: Path, tiny: Path
) -> None:
    from datasets import load_dataset
    from trl import KTOConfig, KTOTrainer

    sft = modules("sft")
    rows = load_dataset("json", data_files=str(run / "kto.jsonl"), split="train")
    assert len(rows) == 2 * ROWS
    settings = KTOConfig(
        output_dir=str(tmp_path), num_train_epochs=2, learning_rate=1e-3, per_device_train_batch_size=8, max_length=256,
        logging_steps=1, report_to="none", use_cpu=True, seed=0,
    )  # fmt: skip
    tokenizer: Any = sft.load_tokenizer(str(tiny))
    trainer = KTOTrainer(sft.load_model(str(tiny)), None, settings, None, rows, None, tokenizer)
    trainer.train()
    seen = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert sum(seen[-4:]) < sum(seen[:4])
