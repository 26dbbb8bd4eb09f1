"""IFD and r-IFD against a direct computation, one sequence at a time: SmolLM2-135M-Instruct, 40 rows.

`python -m benchmarks.difficulty [ROWS.jsonl]`, with torch, transformers and gguf installed and the weights fetched
(`refed teacher fetch embedded-smoke`). Both scorers are checked: the batched one, and the endpoint one, whose server is
a separate process that answers as vLLM does with the same model.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

from refed_dspy.metrics.endpoint_scorer import EndpointScorer
from refed_dspy.metrics.perplexity import GUESS, Difficulty, ifd
from refed_dspy.metrics.transformers_scorer import TransformersScorer
from refed_dspy.weights import SMOKE, find

ROWS = Path("/work/shared/data/self_instruct_seed_tasks.jsonl")
FOLDER = Path("/tmp/smollm")
COUNT = 40
WITHIN = 0.01
Pair = tuple[str, str]


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


def direct(folder: Path, rows: list[Pair]) -> list[tuple[float, float]]:
    """(IFD, r-IFD) of each row by the model's own loss, without any of the package's code."""
    import torch

    model, tokenizer = loaded(folder)

    def loss(context: str, text: str) -> float:
        context_ids = [tokenizer.bos_token_id]
        if context:
            context_ids += tokenizer.encode(context, add_special_tokens=False)
        text_ids = tokenizer.encode(text, add_special_tokens=False)
        labels = torch.tensor([[-100] * len(context_ids) + text_ids])
        with torch.no_grad():
            return float(model(input_ids=torch.tensor([context_ids + text_ids]), labels=labels).loss)

    figures = []
    for asked, answered in rows:
        forward = math.exp(loss(f"{asked}\n", answered)) / math.exp(loss("", answered))
        backward = math.exp(loss(f"{answered}\n{GUESS}\n", asked)) / math.exp(loss("", asked))
        figures.append((forward, backward))
    return figures


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


def by_endpoint(folder: Path, rows: list[Pair], start: str) -> list[Difficulty]:
    command = [sys.executable, "-m", "benchmarks.difficulty", "serve", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            port = int(process.stdout.readline())
            scorer = EndpointScorer("smollm2", f"http://127.0.0.1:{port}/v1", start=start)
            difficulties = ifd(scorer, rows)
            print(f"  endpoint: {scorer.calls} calls, {scorer.tokens:,} prompt tokens, {scorer.unanswered} unanswered")
            return difficulties
        finally:
            process.terminate()


def largest_gap(measured: list[Difficulty], expected: list[tuple[float, float]]) -> float:
    """The largest difference from `expected`, as a share of it. A missing figure is infinitely far."""
    gaps = []
    for row, (forward, backward) in zip(measured, expected, strict=True):
        for value, right in ((row.ifd, forward), (row.r_ifd, backward)):
            gaps.append(math.inf if value is None else abs(value - right) / right)
    return max(gaps)


def main() -> None:
    rows = pairs(Path(sys.argv[1]) if len(sys.argv) > 1 else ROWS)
    folder = unpacked()
    print(f"{len(rows)} rows, SmolLM2-135M-Instruct in float32")
    began = time.perf_counter()
    expected = direct(folder, rows)
    print(f"  direct, one sequence at a time: {time.perf_counter() - began:.0f} s")
    began = time.perf_counter()
    batched = ifd(TransformersScorer(str(folder)), rows)
    print(f"  batched: {time.perf_counter() - began:.0f} s, loading included")
    remote = by_endpoint(folder, rows, loaded(folder)[1].bos_token)
    worst = {"batched": largest_gap(batched, expected), "endpoint": largest_gap(remote, expected)}
    for name, gap in worst.items():
        print(f"  {name}: largest difference of an IFD or r-IFD from the direct one {gap:.2e} (must be ≤ {WITHIN})")
    below = sum(forward < 1 and backward < 1 for forward, backward in expected)
    print(f"  {below} of {len(rows)} rows have both below 1")
    sys.exit(any(gap > WITHIN for gap in worst.values()))


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        serve(Path(sys.argv[2]))
    else:
        main()
