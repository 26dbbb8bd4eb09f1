"""The fine-tuning recipe, end to end on the processor: what is in the loss, packing, resuming, and what it refuses."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytest.importorskip("trl", reason="make finetune brings it")

from tests.finetune.conftest import ENVIRONMENT, FOLDER, ROWS, SETTINGS, VOCABULARY, make_tiny, run_script

pytestmark = pytest.mark.finetune
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
ODD = [
    ("Say hello.", "### Response:\nnot a mark, but text"),
    ("### Instruction:\nsay </s> twice", "{{ 7 * 7 }} {% raw %} “Ünïcode” 鸟"),
    ("  Two lines,\nplease. ", "one\n\ntwo  "),
    ("Count to three.", "One, two, three."),
]


def results(out: Path) -> Any:
    return json.loads((out / "training.json").read_text())


def losses(out: Path, kind: str) -> list[float]:
    return [entry[kind] for entry in results(out)["losses"] if kind in entry]


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def chat(*texts: str) -> Mapping[str, Any]:
    roles = ("user", "assistant") * len(texts)
    return {"messages": [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]}


def trainer_of(sft: ModuleType, data: Path, model: Path, out: Path, *more: object) -> Any:
    args = sft.arguments(["--data", str(data), "--model", str(model), "--out", str(out), *map(str, more)])
    tokenizer, loaded = sft.load_tokenizer(args.model), sft.load_model(args.model)
    samples = sft.fitting(sft.read_samples(args.data), loaded, tokenizer, args)
    return sft.make_trainer(args, loaded, tokenizer, samples)


def test_the_loss_falls_by_far_and_the_figures_say_on_what(tuned: Path, train_file: Path) -> None:
    evaluated, trained, facts = losses(tuned, "eval_loss"), losses(tuned, "loss"), results(tuned)
    assert evaluated[-1] < evaluated[0] - 2
    assert evaluated[-1] < math.log(VOCABULARY) - 1  # far below knowing nothing
    assert trained[-1] < trained[0] - 2
    assert facts["rows"] == ROWS and facts["left_out"] == 0
    assert facts["data_sha256"] == hashlib.sha256(train_file.read_bytes()).hexdigest()
    assert facts["device"] == "cpu" and facts["versions"]["trl"]
    assert len(evaluated) == 5  # before the first step, and after each epoch
    assert {"adapter_model.safetensors", "chat_template.jinja"} <= {path.name for path in tuned.iterdir()}
    assert not (tuned / "checkpoints").exists()


def test_the_adapter_loads_answers_and_stops(
    modules: Callable[[str], ModuleType], tuned: Path, tiny: Path, tmp_path: Path
) -> None:
    generate = modules("generate")
    prompts = write(tmp_path / "prompts.jsonl", *({"instruction": text} for text in ("Write of tea.", "Why?", "How?")))
    arguments = ["--model", tiny, "--prompts", prompts, "--max-new-tokens", 200, "--batch-size", 2]
    answers = {}
    for name, more in (("base", []), ("tuned", ["--adapter", tuned]), ("again", ["--adapter", tuned])):
        generate.generate(
            generate.arguments([str(argument) for argument in [*arguments, *more, "--out", tmp_path / name]])
        )
        answers[name] = [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]
    assert [row["instruction"] for row in answers["tuned"]] == ["Write of tea.", "Why?", "How?"]
    assert answers["tuned"] == answers["again"] and answers["tuned"] != answers["base"]
    assert all(row["output"] for row in answers["tuned"])


def test_the_saved_adapter_and_tokenizer_are_what_was_trained(tuned: Path, tiny: Path, train_file: Path) -> None:
    import torch
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(tuned), AutoPeftModelForCausalLM.from_pretrained(tuned).eval()
    messages = json.loads(train_file.read_text().splitlines()[0])["messages"]
    asked = tokenizer.apply_chat_template(messages[:1], add_generation_prompt=True, return_dict=False)
    ids = torch.tensor([tokenizer.apply_chat_template(messages, return_dict=False)])
    labels = ids.clone()
    labels[0, : len(asked)] = -100
    with torch.inference_mode(), model.disable_adapter():
        before = model(input_ids=ids, labels=labels).loss.item()
    with torch.inference_mode():
        after = model(input_ids=ids, labels=labels).loss.item()
    assert after < before - 2
    assert after == pytest.approx(losses(tuned, "loss")[-1], abs=1.5)


@pytest.mark.parametrize("template", ["", CHATML])
def test_the_loss_is_over_the_answer_and_its_end_alone(
    sft: ModuleType, tmp_path: Path, train_file: Path, template: str
) -> None:
    model = make_tiny(tmp_path / "model", [text for pair in ODD for text in pair])
    tokenizer = sft.load_tokenizer(str(model))
    if template:
        tokenizer.chat_template = template
        tokenizer.save_pretrained(model)
    data = write(tmp_path / "odd.jsonl", *(chat(*pair) for pair in ODD))
    trainer = trainer_of(sft, data, model, tmp_path / "out", "--max-length", 512, "--eval-share", 0)
    tokenizer = trainer.processing_class
    assert tokenizer.eos_token == ("<|im_end|>" if template else "</s>")
    ends = f"{tokenizer.eos_token}\n"
    strip = (lambda text: text) if template else str.strip
    learned, shown = [], []
    for pack in trainer.train_dataset:
        first = 0
        for length in pack["seq_lengths"]:
            ids, labels = (pack[name][first : first + length] for name in ("input_ids", "labels"))
            learned.append(tokenizer.decode([label for label in labels if label != -100]))
            shown.append(tokenizer.decode([i for i, label in zip(ids, labels, strict=True) if label == -100]))
            first += length
    assert sorted(learned) == sorted(strip(answer) + ends for _, answer in ODD)
    asked = [
        tokenizer.apply_chat_template(chat(q)["messages"], add_generation_prompt=True, tokenize=False) for q, _ in ODD
    ]
    assert sorted(shown) == sorted(asked)


def test_packed_samples_do_not_see_each_other(sft: ModuleType, tmp_path: Path, tiny: Path, train_file: Path) -> None:
    import torch

    trainer = trainer_of(sft, train_file, tiny, tmp_path, "--max-length", 512, "--eval-share", 0)
    packs = trainer.train_dataset
    assert len(packs) < ROWS / 2  # several in one
    batch = trainer.data_collator([packs[0]])
    model = trainer.model.eval()
    with torch.inference_mode():
        together = model(**{name: batch[name] for name in ("input_ids", "position_ids")}).logits[0]
        first = 0
        for length in packs[0]["seq_lengths"]:
            alone = model(input_ids=batch["input_ids"][:, first : first + length]).logits[0]
            torch.testing.assert_close(together[first : first + length], alone, rtol=1e-3, atol=1e-3)
            first += length
    assert len(packs[0]["seq_lengths"]) > 1


def test_a_killed_training_goes_on_to_the_same_end(
    sft: ModuleType, tuned: Path, tmp_path: Path, train_file: Path, tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from safetensors.torch import load_file

    out = tmp_path / "out"
    arguments = list(map(str, ["--data", train_file, "--model", tiny, "--out", out, *SETTINGS, "--save-steps", 10]))
    command = [sys.executable, str(FOLDER / "sft.py"), *arguments]
    process = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 600
    while not (out / "checkpoints" / "checkpoint-10" / "trainer_state.json").is_file():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (out / "training.json").exists()
    cut_off = out / "checkpoints" / "checkpoint-999"
    cut_off.mkdir()  # as a kill in the middle of writing leaves one
    (cut_off / "adapter_config.json").write_text("{")

    for state in out.glob("checkpoints/*/trainer_state.json"):  # marked: a start anew would come to the same end, too
        content = json.loads(state.read_text())
        content["log_history"][0]["eval_loss"] = 123.0
        state.write_text(json.dumps(content))
    sft.train(sft.arguments(arguments))
    output = capsys.readouterr().out
    assert "going on from" in output and "checkpoint-999" not in output
    assert losses(out, "eval_loss")[0] == 123
    assert losses(out, "loss") == pytest.approx(losses(tuned, "loss"), rel=1e-4)
    ours, theirs = (load_file(folder / "adapter_model.safetensors") for folder in (out, tuned))
    assert all(ours[name].allclose(theirs[name], atol=1e-4) for name in theirs)

    before = (out / "training.json").stat().st_mtime_ns
    sft.train(sft.arguments(arguments))
    assert "is finished" in capsys.readouterr().out
    assert (out / "training.json").stat().st_mtime_ns == before
    with pytest.raises(sft.BadInput, match="another epochs; name another --out"):
        sft.train(sft.arguments([*arguments, "--epochs", "5"]))


def test_another_file_of_data_is_refused_in_a_folder(sft: ModuleType, tuned: Path, tiny: Path, tmp_path: Path) -> None:
    data = write(tmp_path / "other.jsonl", chat("a", "b"))
    copy = shutil.copytree(tuned, tmp_path / "copy")
    args = ["--data", data, "--model", tiny, "--out", copy, *SETTINGS]
    with pytest.raises(sft.BadInput, match="another data_sha256; name another --out"):
        sft.train(sft.arguments(list(map(str, args))))


def test_the_parquet_of_a_run_is_the_same_samples(sft: ModuleType, run: Path, train_file: Path) -> None:
    assert sft.read_samples(run / "train.parquet") == sft.read_samples(train_file)


def test_of_several_turns_the_last_answer_is_learned(sft: ModuleType, tmp_path: Path) -> None:
    (sample,) = sft.read_samples(write(tmp_path / "turns.jsonl", chat("a", "b", "c", "d")))
    assert [message["content"] for message in sample["prompt"]] == ["a", "b", "c"]
    assert sample["completion"] == [{"role": "assistant", "content": "d"}]


def test_what_is_too_long_is_left_out_and_counted(
    sft: ModuleType, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write(tmp_path / "long.jsonl", chat("a", "b"), chat("a", "word " * 300), chat("c", "d"))
    trainer = trainer_of(sft, data, tiny, tmp_path / "out", "--max-length", 100, "--eval-share", 0)
    assert sum(len(pack["seq_lengths"]) for pack in trainer.train_dataset) == 2
    assert "1 of 3 samples are longer than --max-length 100" in capsys.readouterr().out


GOOD = [chat("a", "b"), chat("c", "d"), chat("e", "f")]


@pytest.mark.parametrize(
    ("rows", "more", "message"),
    [
        ([], [], "has no rows"),
        (["{broken"], [], "cannot be read"),
        ([{"question": "a", "answer": "b"}], [], "row 1: needs messages .* columns: question, answer"),
        ([*GOOD, {"messages": []}], [], "row 4: needs messages"),
        ([{"messages": [{"role": "assistant", "content": "b"}, {"role": "user", "content": "a"}]}], [], "row 1"),
        ([chat("a", " ")], [], "row 1"),
        ([chat("a")], [], "row 1"),
        ([{"instruction": "a", "improved_response": None}], [], "row 1"),
        ([7], [], "row 1"),
        (GOOD, ["--max-length", "513"], "has room for 512 tokens; lower --max-length from 513"),
        (GOOD, ["--max-length", "5"], "0 samples of at most 5 tokens are too few"),
        (GOOD, ["--model", "/no/such/folder"], "/no/such/folder"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_in_one_line(
    sft: ModuleType, tiny: Path, tmp_path: Path, rows: list[Any], more: list[str], message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    data = tmp_path / "data.jsonl"
    data.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    arguments = [
        "--data",
        str(data),
        "--model",
        str(tiny),
        "--out",
        str(tmp_path / "out"),
        "--max-length",
        "256",
        *more,
    ]
    with pytest.raises(sft.BadInput, match=message):
        sft.train(sft.arguments(arguments))


@pytest.mark.parametrize("template", ["{{ messages[0].content }}", "{% broken", "{{ raise_exception('no') }}"])
def test_a_template_without_an_end_is_refused(sft: ModuleType, tiny: Path, tmp_path: Path, template: str) -> None:
    (tmp_path / "template.jinja").write_text(template)
    with pytest.raises(sft.BadInput, match="chat template"):
        sft.load_tokenizer(str(tiny), tmp_path / "template.jinja")


@pytest.mark.parametrize("more", [["--epochs", "0"], ["--eval-share", "1"], ["--max-length", "0"], ["--seed", "-1"]])
def test_a_setting_out_of_range_ends_with_2(sft: ModuleType, more: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        sft.arguments(["--data", "a", "--model", "b", "--out", "c", *more])


def test_the_command_says_one_line_and_2(tiny: Path, tmp_path: Path) -> None:
    done = run_script("sft.py", "--data", tmp_path / "none.jsonl", "--model", tiny, "--out", tmp_path / "out")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("sft: ") and "none.jsonl" in done.stderr


def test_the_recipe_is_short_enough_to_copy(modules: Callable[[str], ModuleType]) -> None:
    assert len((FOLDER / "sft.py").read_text().splitlines()) < 300
    assert "refed_dspy" not in (FOLDER / "sft.py").read_text()
