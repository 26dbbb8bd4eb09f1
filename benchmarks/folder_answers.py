"""Answers the request files of a folder as `vllm run-batch` does, by the simulated teacher: the whole file of answers
is written at the end, in one go, over one that may be there.

`python -m benchmarks.folder_answers FOLDER URL SECONDS`: looks for files until it is ended; a batch takes SECONDS.
"""

from __future__ import annotations

import json
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any


def answer(url: str, line: dict[str, Any]) -> dict[str, Any]:
    """The line of answers to a line of requests."""
    body = json.dumps(line["body"]).encode()
    request = urllib.request.Request(url + line["url"].removeprefix("/v1"), body, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request) as reply:
            response = {"status_code": 200, "request_id": line["custom_id"], "body": json.load(reply)}
    except urllib.error.HTTPError as error:
        response = {"status_code": error.code, "request_id": line["custom_id"], "body": json.load(error)}
    return {"id": f"vllm-{line['custom_id']}", "custom_id": line["custom_id"], "response": response, "error": None}


def answer_files(folder: Path, url: str, seconds: float) -> None:
    """Answer every file of requests that has no answers yet."""
    for requests in sorted(folder.glob("*.requests.jsonl")):
        answers = requests.with_name(requests.name.replace(".requests.", ".answers."))
        if not answers.exists():
            time.sleep(seconds)
            lines = [answer(url, json.loads(line)) for line in requests.read_text().splitlines()]
            answers.write_text("".join(json.dumps(line) + "\n" for line in lines))


def main() -> None:
    folder, url, seconds = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
    while True:
        answer_files(folder, url, seconds)
        time.sleep(0.05)


if __name__ == "__main__":
    main()
