"""IFD and r-IFD against direct computations, one sequence at a time: SmolLM2-135M-Instruct, 40 rows.

`python -m benchmarks.difficulty [ROWS.jsonl [data_analysis.py]]`, with torch, transformers, gguf and scipy installed
and the weights fetched (`refed teacher fetch embedded-smoke`).

1. Both scorers: the batched one, and the endpoint one, whose server is a separate process that answers as vLLM does
   with the same model.
2. Every template against the authors' file (tianyi-lab/Reflection_Tuning, selection_code/), or, where its path is not
   given, against its arithmetic. Their Llama tokenizer puts BOS in front of a text; SmolLM2's puts nothing there, so
   they are given the start that the scorer takes.
"""

from __future__ import annotations

import json
import math
import runpy
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import cache
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from statistics import median
from typing import Any

from refed_dspy.config.scorer import Template
from refed_dspy.plugins.metrics.endpoint_scorer import EndpointScorer
from refed_dspy.plugins.metrics.figures import CachedScorer
from refed_dspy.plugins.metrics.perplexity import GUESS, SEPARATOR, TEMPLATES, Difficulty, TransformersScorer, ifd
from refed_dspy.weights import SMOKE, find

ROWS = Path(__file__).parents[2] / "shared/data/self_instruct_seed_tasks.jsonl"
FOLDER = Path(tempfile.gettempdir()) / "refed-smollm"
COUNT = 40
WITHIN = 0.01
LEAST = 0.99
THEIR_NAMES: dict[Template, str] = {"vicuna": "vicuna", "alpaca": "alpaca", "wizardlm": "wiz"}
Pair = tuple[str, str]
Figures = list[tuple[float, float]]
"""(IFD, r-IFD) of each row."""
Loss = Callable[[str, str], float]
"""(context, text) → mean -log p over the text's tokens."""


def pairs(path: Path) -> list[Pair]:
    """(instruction with its input, output) of the first rows."""
    made = []
    for line in path.read_text("utf-8").splitlines()[:COUNT]:
        row = json.loads(line)
        first = row["instances"][0]
        made.append((f"{row['instruction']}\n{first['input']}".strip(), first["output"]))
    return made


def unpacked() -> Path:
    """The folder of weights that transformers can load; written once."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if not (FOLDER / "config.json").exists():
        packed = find(SMOKE)
        AutoTokenizer.from_pretrained(packed.parent, gguf_file=packed.name).save_pretrained(FOLDER)
        model = AutoModelForCausalLM.from_pretrained(packed.parent, gguf_file=packed.name, dtype=torch.float32)
        # transformers takes a model read from GGUF for quantised and will not save it, though its weights are plain.
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        plain = AutoModelForCausalLM.from_config(model.config).float()
        plain.load_state_dict(model.state_dict())
        plain.save_pretrained(FOLDER)
    return FOLDER


def loaded(folder: Path) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.eval(), AutoTokenizer.from_pretrained(folder)


def by_loss(loss: Loss, rows: list[Pair], template: str) -> Figures:
    """The authors' arithmetic, by a model's loss and without the package's code."""
    figures = []
    for asked, answered in rows:
        forward = template.replace("{instruction}", asked)
        backward = template.replace("{instruction}", GUESS.replace("{response}", answered))
        given = math.exp(loss(forward, answered)), math.exp(loss(backward, asked))
        figures.append((given[0] / math.exp(loss("", answered)), given[1] / math.exp(loss("", asked))))
    return figures


def loss_of(folder: Path) -> Loss:
    import torch

    model, tokenizer = loaded(folder)

    def ids(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False)) if text else []

    @cache
    def loss(context: str, text: str) -> float:
        whole, unscored = ids(SEPARATOR) + ids(context + text), 1 + len(ids(context))
        labels = torch.tensor([[-100] * unscored + whole[unscored:]])
        with torch.no_grad():
            return float(model(input_ids=torch.tensor([whole]), labels=labels).loss)

    return loss


def their_file(file: Path, folder: Path, rows: list[Pair], prompt: str) -> Figures:
    """The figures by the authors' file as it is. It asks for a Llama tokenizer, and gets the model's with a start."""
    import transformers
    from tokenizers.processors import TemplateProcessing

    class Tokenizer:
        @staticmethod
        def from_pretrained(name: str, **_: Any) -> Any:
            tokenizer = transformers.AutoTokenizer.from_pretrained(name)
            start = (SEPARATOR, tokenizer.get_vocab()[SEPARATOR])
            post_processor = TemplateProcessing(single=f"{SEPARATOR} $A", special_tokens=[start])
            tokenizer.backend_tokenizer.post_processor = post_processor
            return tokenizer

    transformers.LlamaTokenizer = Tokenizer
    with tempfile.TemporaryDirectory() as made:
        data, saved = Path(made) / "data.json", Path(made) / "scores.jsonl"
        data.write_text(json.dumps([{"instruction": asked, "output": answered} for asked, answered in rows]))
        sys.argv = [str(file), "--data_path", str(data), "--save_path", str(saved)]
        sys.argv += ["--model_name_or_path", str(folder), "--prompt", prompt]
        runpy.run_path(str(file), run_name="__main__")
        scores = [json.loads(line)["ppl"] for line in saved.read_text().splitlines()]
    return [(answer_given / answer, asked_given / asked) for asked, answer, asked_given, answer_given in scores]


def serve(folder: Path) -> None:
    """Answer /tokenize and /v1/completions as vLLM does. Prints the port, a free one."""
    import torch

    model, tokenizer = loaded(folder)

    def completion(ids: list[int]) -> dict[str, Any]:
        with torch.inference_mode():
            log_probabilities = torch.log_softmax(model(input_ids=torch.tensor([ids])).logits[0].float(), dim=-1)
        places: list[Any] = [None]
        for place, token in enumerate(ids[1:]):
            value = float(log_probabilities[place, token])
            places.append({str(token): {"logprob": value, "rank": 1, "decoded_token": ""}})
        choice = {"index": 0, "text": "", "finish_reason": "length", "prompt_logprobs": places}
        return {"object": "text_completion", "choices": [choice], "usage": {"prompt_tokens": len(ids)}}

    def tokenized(body: dict[str, Any]) -> dict[str, Any]:
        ids = tokenizer.encode(body["prompt"], add_special_tokens=body["add_special_tokens"])
        return {"count": len(ids), "max_model_len": 8192, "tokens": ids}

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            answer = tokenized(body) if self.path == "/tokenize" else completion(body["prompt"])
            content = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Handler)
    print(server.server_port, flush=True)
    server.serve_forever()


def by_endpoint(folder: Path, rows: list[Pair]) -> list[Difficulty]:
    command = [sys.executable, "-m", "benchmarks.difficulty", "serve", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            port = int(process.stdout.readline())
            scorer = EndpointScorer("smollm2", f"http://127.0.0.1:{port}/v1")
            difficulties = ifd(scorer, rows)
            print(f"  endpoint: {scorer.calls} calls, {scorer.tokens:,} prompt tokens, {scorer.unanswered} unanswered")
            return difficulties
        finally:
            process.terminate()


def largest_gap(measured: list[Difficulty], expected: Figures) -> float:
    """The largest difference from `expected`, as a share of it. A missing figure is infinitely far."""
    gaps = []
    for row, (forward, backward) in zip(measured, expected, strict=True):
        for value, right in ((row.ifd, forward), (row.r_ifd, backward)):
            gaps.append(math.inf if value is None else abs(value - right) / right)
    return max(gaps)


def compared(name: str, measured: list[Difficulty], expected: Figures) -> bool:
    """Prints how well `measured` agrees with `expected`; whether both rank correlations are high enough."""
    from scipy.stats import spearmanr

    print(f"  {name}: largest difference {largest_gap(measured, expected):.1%}")
    rhos = []
    for at, figure in enumerate(("IFD", "r-IFD")):
        ours, theirs = [(row.ifd, row.r_ifd)[at] or math.inf for row in measured], [row[at] for row in expected]
        rhos.append(float(spearmanr(ours, theirs).statistic))
        alike = sum((a < 1) == (b < 1) for a, b in zip(ours, theirs, strict=True))
        below = [sum(value < 1 for value in values) for values in (ours, theirs)]
        print(
            f"    {figure}: Spearman {rhos[-1]:.3f} (must be ≥ {LEAST}), median {median(ours):.2f} (theirs "
            f"{median(theirs):.2f}), below 1 in {below[0]} (theirs {below[1]}), the same side of 1 in {alike}"
        )
    return min(rhos) >= LEAST


def main() -> None:
    rows = pairs(Path(sys.argv[1]) if len(sys.argv) > 1 else ROWS)
    file = Path(sys.argv[2]) if len(sys.argv) > 2 else None
    folder = unpacked()
    print(f"{len(rows)} rows, SmolLM2-135M-Instruct in float32")
    loss = loss_of(folder)
    began = time.perf_counter()
    expected = by_loss(loss, rows, TEMPLATES["vicuna"])
    print(f"  direct, one sequence at a time: {time.perf_counter() - began:.0f} s")
    began = time.perf_counter()
    scorer = CachedScorer(TransformersScorer(str(folder)))
    batched = ifd(scorer, rows)
    print(f"  batched: {time.perf_counter() - began:.0f} s, loading included")
    worst = {"batched": largest_gap(batched, expected), "endpoint": largest_gap(by_endpoint(folder, rows), expected)}
    for name, gap in worst.items():
        print(f"  {name}: largest difference of an IFD or r-IFD from the direct one {gap:.2e} (must be ≤ {WITHIN})")
    fine = all(gap <= WITHIN for gap in worst.values())
    for template, text in TEMPLATES.items():
        if file is not None and template in THEIR_NAMES:
            name, theirs = "file", their_file(file, folder, rows, THEIR_NAMES[template])
        else:
            name, theirs = "arithmetic", by_loss(loss, rows, text)
        fine &= compared(f"{template}, against their {name}", ifd(scorer, rows, template), theirs)
    sys.exit(not fine)


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        serve(Path(sys.argv[2]))
    else:
        main()
