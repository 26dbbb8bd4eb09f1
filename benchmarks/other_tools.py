"""SIGKILL in the middle of 200 rows, then the same command again: what do other tools ask and pay for a second time?

`python -m benchmarks.other_tools curator=/path/to/venv/bin/python data-designer=… [--at 30 100 160]`

Each tool runs in its own environment; `refed-dspy`, named without a path, runs in this one. A row is one call of 0.3 s,
ten at once (a sample of refed-dspy is 2.2 calls). The process group is killed once the server has given --at answers. A
prompt counts as paid again when it arrives after it was answered before; calls in flight at the kill were not answered.
The figures are in docs/other-tools.md.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.simulated import SimulatedTeacher

ROWS, PATIENCE = 200, 120  # seconds until a second start that does nothing counts as hanging
HEAD = """
import os, sys
url, folder, rows = sys.argv[1], sys.argv[2], int(sys.argv[3])
prompts = [f"Question number {i}: say something about {i}." for i in range(rows)]
"""
CLIENTS = {
    "refed-dspy": """
import refed_dspy
topics = {f"Explain topic {i}.": f"Topic {i} is about many things. " * 20 for i in range(40)}
references = [{"instruction": topic, "response": text} for topic, text in topics.items()]
teacher = refed_dspy.TeacherConfig(model="sim/sim-model", api_base=url, concurrency=10)
made = refed_dspy.synthesize(None, references, size=rows, teacher=teacher, run_dir=folder + "/run")
print("ROWS", len(made.samples))
""",
    "distilabel": """
from distilabel.models import OpenAILLM
from distilabel.pipeline import Pipeline
from distilabel.steps import LoadDataFromDicts
from distilabel.steps.tasks import TextGeneration
if __name__ == "__main__":
    with Pipeline(name="rows", cache_dir=folder + "/cache") as pipeline:
        load = LoadDataFromDicts(data=[{"instruction": prompt} for prompt in prompts], batch_size=10)
        llm = OpenAILLM(model="sim-model", base_url=url, api_key="none", generation_kwargs={"max_new_tokens": 256})
        load >> TextGeneration(llm=llm, input_batch_size=10)
    print("ROWS", len(pipeline.run(use_cache=True)["default"]["train"]))
""",
    "curator": """
os.environ |= {"CURATOR_CACHE_DIR": folder + "/cache", "TELEMETRY_ENABLED": "false", "OPENAI_API_KEY": "none"}
from bespokelabs import curator
class Ask(curator.LLM):
    def prompt(self, row): return row["instruction"]
    def parse(self, row, response): return {"response": response}
backend = {"base_url": url, "max_concurrent_requests": 10}
backend |= {"max_requests_per_minute": 100_000, "max_tokens_per_minute": 100_000_000}
llm = Ask("sim-model", backend="openai", generation_params={"max_tokens": 256}, backend_params=backend)
print("ROWS", len(llm([{"instruction": prompt} for prompt in prompts]).dataset))
""",
    "data-designer": """
os.environ |= {"NEMO_TELEMETRY_ENABLED": "false", "HOME": folder}
import pandas
import data_designer.config as dd
from data_designer.interface import DataDesigner
host = dd.ModelProvider(name="sim", endpoint=url, provider_type="openai", api_key="none")
inference = dd.ChatCompletionInferenceParams(max_tokens=256, max_parallel_requests=10)
model = dd.ModelConfig(alias="m", model="sim", provider="sim", skip_health_check=True, inference_parameters=inference)
designer = DataDesigner(artifact_path=folder + "/made", model_providers=[host])
designer.set_run_config(dd.RunConfig(buffer_size=int(os.environ.get("UNIT", "1000"))))  # 1,000 is the tool's default
builder = dd.DataDesignerConfigBuilder(model_configs=[model])
builder.with_seed_dataset(dd.DataFrameSeedSource(df=pandas.DataFrame({"asked": prompts})))
builder.add_column(dd.LLMTextColumnConfig(name="text", prompt="{{ asked }}", model_alias="m"))
made = designer.create(builder, num_records=rows, dataset_name="rows", resume=dd.ResumeMode.IF_POSSIBLE)
print("ROWS", len(made.load_dataset()))
""",
    "dspy": """
os.environ["DSPY_CACHEDIR"] = folder + "/cache"
import dspy
dspy.configure(lm=dspy.LM("openai/sim-model", api_base=url, api_key="none", max_tokens=256))
class Ask(dspy.Module):
    def forward(self, asked): return dspy.Prediction(answer=dspy.settings.lm(asked)[0])
pairs = [(Ask(), dspy.Example(asked=prompt).with_inputs("asked")) for prompt in prompts]
print("ROWS", sum(bool(answer) for answer in dspy.Parallel(num_threads=10)(pairs)))
""",
}


def killed(command: list[str], folder: Path, server: SimulatedTeacher, at: int) -> bool:
    """Start the command and kill its process group at the server's `at`-th answer. False if it ended before that."""
    with (folder / "first.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, start_new_session=True)
    while process.poll() is None and server.stats()["answered"] < at:
        time.sleep(0.02)
    alive = process.poll() is None
    if alive:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    time.sleep(1.5)  # the server notices and answers none of them later
    return alive


def again(command: list[str], folder: Path) -> str:
    """Start the same command once more. Returns how it ended."""
    with (folder / "again.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, start_new_session=True)
    try:
        process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return f"HANGS for {PATIENCE} s"
    lines = (folder / "again.log").read_text(errors="replace").splitlines()
    return next((line for line in lines if line.startswith("ROWS")), f"failed: {lines[-1:]}")


def measure(tool: str, python: str, at: int) -> str:
    """One kill and one second start: a line of figures."""
    with SimulatedTeacher(latency=0.3, sigma=0.0) as server, tempfile.TemporaryDirectory() as home:
        folder = Path(home)
        (folder / "client.py").write_text(HEAD + CLIENTS[tool])
        command = [python, "client.py", server.base_url, home, str(ROWS)]
        if not killed(command, folder, server, at):
            return f"{tool}: ended before {at} answers: {(folder / 'first.log').read_text()[-300:]}"
        before = server.stats()
        end = again(command, folder)
        after = server.stats()
    paid_again = after["repeated"] - before["repeated"]
    first = f"killed at {before['answered']} answers, {before['requests'] - before['answered']} in flight"
    return f"{tool}: {first}; in all {after['requests']} requests, {paid_again} answered before; {end}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.other_tools")
    parser.add_argument("tools", nargs="+", metavar="TOOL[=PYTHON]", help=f"of {', '.join(CLIENTS)}")
    parser.add_argument("--at", nargs="+", type=int, default=[30, 100, 160])
    options = parser.parse_args()
    os.environ |= {"REFED_TRACK": "false", "PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
    for named in options.tools:
        tool, _, python = named.partition("=")
        if tool not in CLIENTS:
            parser.error(f"{tool} is none of {', '.join(CLIENTS)}")
        for at in options.at:
            print(measure(tool, python or sys.executable, at), flush=True)


if __name__ == "__main__":
    main()
