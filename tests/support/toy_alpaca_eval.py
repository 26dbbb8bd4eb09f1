"""A stand-in for the package alpaca-eval, in an environment of its own, for what is ours around it: it takes the same
command, asks the same server as many questions, and writes files of the same form. The real one takes 670 MB, and runs
in `make evaluate`."""

from __future__ import annotations

import json
import math
import os
import sys
from pathlib import Path
from typing import Any


def make_environment(folder: Path) -> Path:
    """An environment whose `alpaca_eval` is this file."""
    from refed_dspy.plugins.evaluate.program import ALPACA_EVAL
    from tests.support.toy_environments import toy_environment

    files = {"alpaca_eval/__init__.py": "", "alpaca_eval/main.py": Path(__file__).read_text("utf-8")}
    return toy_environment(folder, ALPACA_EVAL, files)


def main(arguments: list[str]) -> None:
    import csv
    from concurrent.futures import ThreadPoolExecutor

    import yaml

    options = dict(zip(arguments[1::2], arguments[2::2], strict=True))
    judge = yaml.safe_load(Path(options["--annotators_config"], "configs.yaml").read_text("utf-8"))["judge"]
    (client,) = yaml.safe_load(Path(os.environ["OPENAI_CLIENT_CONFIG_PATH"]).read_text("utf-8"))["default"]
    names = ("--model_outputs", "--reference_outputs")
    mine, theirs = (json.loads(Path(options[name]).read_text("utf-8")) for name in names)
    reference = {row["instruction"]: row for row in theirs}
    pairs = [(row, reference[row["instruction"]]) for row in mine if row["instruction"] in reference]
    with ThreadPoolExecutor(int(os.environ["OPENAI_MAX_CONCURRENCY"])) as pool:
        wins = [*pool.map(lambda pair: preference(client, judge["completions_kwargs"], *pair), pairs)]
    known = [win for win in wins if win is not None]
    rate = 100 * sum(win - 1 for win in known) / len(known)
    rows = [
        {"instruction": a["instruction"], "output_1": b["output"], "generator_1": b["generator"],
         "output_2": a["output"], "generator_2": a["generator"], "preference": win}
        for (a, b), win in zip(pairs, wins, strict=True)
    ]  # fmt: skip
    results = Path(options["--output_path"])
    results.mkdir()
    (results / "annotations.json").write_text(json.dumps(rows), "utf-8")
    with (results / "leaderboard.csv").open("w", encoding="utf-8") as file:
        error = 1.5 if len(known) > 1 else ""  # as pandas writes what is not a number
        csv.writer(file).writerows([["", "win_rate", "standard_error", "n_total"], ["m", rate, error, len(known)]])


def preference(client: Any, settings: Any, mine: Any, theirs: Any) -> float | None:
    from urllib.error import HTTPError
    from urllib.request import Request, urlopen

    asked = {name: value for name, value in settings.items() if name not in {"model_name", "price_per_token"}}
    text = f"{mine['instruction']}\nm: {theirs['output']}\nM: {mine['output']}"
    body = {"model": settings["model_name"], "messages": [{"role": "user", "content": text}], **asked}
    headers = {"Authorization": f"Bearer {client['api_key']}", "Content-Type": "application/json"}
    request = Request(f"{client['base_url']}/chat/completions", json.dumps(body).encode(), headers)
    try:
        with urlopen(request) as answer:
            read = json.load(answer)
    except HTTPError as error:
        if "try again with a different prompt." in error.read().decode():
            return None
        raise
    (token,) = read["choices"][0]["logprobs"]["content"]
    shares = {each["token"]: math.exp(each["logprob"]) for each in token["top_logprobs"]}
    return float(1 + shares["M"] / sum(shares.values()))


if __name__ == "__main__":
    main(sys.argv[1:])
