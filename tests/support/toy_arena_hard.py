"""A stand-in for a clone of lmarena/arena-hard-auto, for what is ours around its code: the same files in the same
places, the same commands, requests and printed tables, and arithmetic of its own. The real one runs in `make evaluate`.

This file is the toy's `gen_judgment.py` and `show_result.py` as well.
"""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import yaml

BENCHMARK, CATEGORY, BASELINE = "arena-hard-v2.0", "hard_prompt", "o3-toy"
RUBRIC = "Which answer is better? Say [[A>>B]], [[A=B]] or [[B>A]]."
JUDGE_SETTINGS = f'''
RUBRIC = "{RUBRIC}"
JUDGE_SETTINGS = {{
    "{CATEGORY}": {{"baseline": "{BASELINE}", "system_prompt": RUBRIC}},
    "creative_writing": {{"baseline": "writer-toy", "system_prompt": RUBRIC}},
}}
'''
SETTINGS = {
    "judge_model": "gpt-toy",
    "bench_name": BENCHMARK,
    "reference": None,
    "temperature": 0.0,
    "max_tokens": 64,
    "regex_patterns": [r"\[\[([AB<>=]+)\]\]"],
    "prompt_template": "{QUESTION}\nA: {ANSWER_A}\nB: {ANSWER_B}",
    "model_list": ["some-model"],
}
VERDICTS = ["[[A>>B]]", "[[A>B]]", "[[A=B]]", "[[B>A]]", "[[B>>A]]"]


def make_environment(folder: Path) -> Path:
    """An environment with a PyTorch that is empty."""
    from refed_dspy.plugins.evaluate.program import ARENA_HARD
    from tests.support.toy_environments import toy_environment

    return toy_environment(folder, ARENA_HARD, {"torch/__init__.py": ""})


def make_clone(folder: Path, questions: int = 12) -> Path:
    """A clone in `folder`, with so many questions of CATEGORY and three of another."""
    for name in ("gen_judgment.py", "show_result.py"):
        write(folder / name, Path(__file__).read_text("utf-8"))
    for name in ("completion.py", "math_utils.py"):
        write(folder / "utils" / name, "")
    write(folder / "utils" / "judge_utils.py", JUDGE_SETTINGS)
    write(folder / "config" / f"{BENCHMARK}.yaml", yaml.safe_dump(SETTINGS))
    data = folder / "data" / BENCHMARK
    asked = [(f"q{n:02}", CATEGORY) for n in range(questions)] + [(f"w{n}", "creative_writing") for n in range(3)]
    rows = [{"uid": uid, "category": category, "prompt": f"What is there to say of {uid}?"} for uid, category in asked]
    write(data / "question.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    write_answers(data / "model_answer" / f"{BASELINE}.jsonl", questions, words=6)
    return folder


def write_answers(path: Path, questions: int, words: int = 4, **changed: Any) -> Path:
    """A model's answers to the first questions, some longer. `changed`: fields of each row, None for absent."""
    rows = []
    for n in range(questions):
        text = f"{path.stem} on {n}. " + "More. " * (words * (n % 3))
        style = {"token_len": len(text), "header_count": {"h1": n % 2}, "list_count": {"ordered": 0}}
        row = {
            "uid": f"q{n:02}",
            "model": "served",
            "messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": {"answer": text}}],
            "metadata": {**style, "bold_count": {"**": n % 3}},
        }
        rows.append({name: value for name, value in {**row, **changed}.items() if value is not None})
    return write(path, "".join(json.dumps(row) + "\n" for row in rows))


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")
    return path


def rows_of(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


# --- the toy's code, run in a folder as the real code is


def gen_judgment(arguments: list[str]) -> None:
    from concurrent.futures import ThreadPoolExecutor

    options = dict(zip(arguments[::2], arguments[1::2], strict=True))
    settings = yaml.safe_load(Path(options["--setting-file"]).read_text("utf-8"))
    endpoint = yaml.safe_load(Path(options["--endpoint-file"]).read_text("utf-8"))[settings["judge_model"]]
    assert endpoint["endpoints"] is None and endpoint["api_type"] == "openai"
    data = Path("data") / settings["bench_name"]
    answers = {file.stem: {row["uid"]: row for row in rows_of(file)} for file in (data / "model_answer").iterdir()}
    assert {*answers} == {BASELINE, *settings["model_list"]}, "no others lie there"
    folder = data / "model_judgment" / settings["judge_model"]
    folder.mkdir(parents=True)

    def judge(task: tuple[str, Any]) -> None:
        model, question = task
        pair = (answers[BASELINE][question["uid"]], answers[model][question["uid"]])
        games = [game(settings, endpoint["model"], question, *sides) for sides in (pair, pair[::-1])]
        row = {"uid": question["uid"], "category": question["category"], "judge": settings["judge_model"]}
        row |= {"model": pair[1]["model"], "baseline": BASELINE, "games": games}
        with (folder / f"{model}.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    tasks = [(model, question) for model in settings["model_list"] for question in rows_of(data / "question.jsonl")]
    with ThreadPoolExecutor(endpoint["parallel"]) as pool:
        list(pool.map(judge, tasks))


def game(settings: Any, model: str, question: Any, one: Any, other: Any) -> Any:
    """A verdict; None where the endpoint has no answer."""
    from urllib.error import HTTPError
    from urllib.request import Request, urlopen

    texts = {name: row["messages"][-1]["content"]["answer"] for name, row in (("ANSWER_A", one), ("ANSWER_B", other))}
    text = settings["prompt_template"].format(QUESTION=question["prompt"], **texts)
    messages = [{"role": "system", "content": RUBRIC}, {"role": "user", "content": text}]
    body = {"model": model, "messages": messages, "temperature": 0.0, "max_tokens": settings["max_tokens"]}
    headers = {"Authorization": f"Bearer {os.environ['OPENAI_API_KEY']}", "Content-Type": "application/json"}
    address = f"{os.environ['OPENAI_BASE_URL']}/chat/completions"
    try:
        with urlopen(Request(address, json.dumps(body).encode(), headers)) as answer:
            said = json.load(answer)["choices"][0]["message"]["content"]
    except HTTPError as error:
        if error.code == 400:
            return None
        raise
    found = re.findall(settings["regex_patterns"][0], said)
    return {"score": found[-1] if found else None, "judgment": {"answer": said}, "prompt": messages}


def show_result(arguments: list[str]) -> None:
    """A table by a random draw, as the real one's: the mean of drawn scores, and their range."""
    import numpy as np

    controlled = "--control-features" in arguments
    options = dict(zip(arguments[:6:2], arguments[1:6:2], strict=True))
    data = Path("data") / options["--benchmark"]
    rows = [row for file in (data / "model_judgment" / options["--judge-names"]).iterdir() for row in rows_of(file)]
    score = {"A>>B": 0, "A>B": 0.25, "A=B": 0.5, "B>A": 0.75, "B>>A": 1}
    rows = [row for row in rows if all(game["score"] for game in row["games"])]
    lengths = {
        file.stem: {row["uid"]: row["metadata"]["token_len"] for row in rows_of(file)}
        for file in ((data / "model_answer").iterdir() if controlled else ())
    }
    lines = [f"##### Category: {options['--category']} #####", "    Model  Scores (%)         CI (%)"]
    for number, model in enumerate(dict.fromkeys(row["model"] for row in rows)):
        wins = [100 * (score[one["score"]] + 1 - score[other["score"]]) / 2
                for row in rows if row["model"] == model for one, other in (row["games"],)]  # fmt: skip
        drawn = np.random.choice(wins, len(wins)) + (len(lengths.get(model, ())) and 1)
        lines.append(f"{number}  {model}   {drawn.mean():.1f}  (-{drawn.std():.1f} / +{drawn.std() / 2:.1f})")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    (gen_judgment if "--setting-file" in sys.argv else show_result)(sys.argv[1:])
