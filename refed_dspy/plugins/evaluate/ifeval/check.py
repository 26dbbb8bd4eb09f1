"""Runs the checker of IFEval that lm-eval has: `check.py QUESTIONS RESULTS`, two files of JSON lines.

It is run by path, by an interpreter that has lm-eval, so it imports nothing of this package. A question holds the
prompt's row as `doc`, and a `response`; its result, in the same order, says which instructions were followed. Where the
questions cannot be checked at all, the only result is `refused`, the reason.

Where a prompt counts something that is no letter, the checker draws a letter at random, and langdetect draws as well:
both are seeded, by prompt, so that the same response has the same result.
"""

from __future__ import annotations

import json
import random
import sys

import langdetect
import nltk
from lm_eval.tasks.ifeval import instructions_registry, utils

SENTENCES = "tokenizers/punkt_tab/english"


def main(questions: str, results: str) -> None:
    langdetect.DetectorFactory.seed = 0
    with open(questions, encoding="utf-8") as asked:  # noqa: PTH123
        rows = [json.loads(line) for line in asked]
    refused = why_refused(rows)
    with open(results, "w", encoding="utf-8") as written:  # noqa: PTH123
        for result in [{"refused": refused}] if refused else map(checked, rows):
            written.write(json.dumps(result) + "\n")


def why_refused(rows: list[dict]) -> str:  # type: ignore[type-arg]
    """Why the rows cannot be checked: a reason, or `sentences` for a model that is missing; empty where they can."""
    known = instructions_registry.INSTRUCTION_DICT
    named = {name: row["doc"]["key"] for row in rows for name in row["doc"]["instruction_id_list"]}
    if unknown := [name for name in named if name not in known]:
        return f"prompts: {unknown[0]!r}, of key {named[unknown[0]]}, is no instruction that lm-eval's checker knows"
    try:
        nltk.data.find(SENTENCES)
    except LookupError:
        return "sentences"
    return ""


def checked(row: dict) -> dict:  # type: ignore[type-arg]
    """Which instructions the response follows, by the strict and by the loose reading."""
    doc = row["doc"]
    random.seed(str(doc["key"]))
    result = utils.process_results(doc, [row["response"]])
    return {"strict": result["inst_level_strict_acc"], "loose": result["inst_level_loose_acc"]}


if __name__ == "__main__":
    main(*sys.argv[1:])
