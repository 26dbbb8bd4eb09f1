"""A simulated judge with known biases, behind an OpenAI-compatible endpoint in a process of its own.

`python -m benchmarks.biased_judge PEOPLE.json`; `BiasedJudge` starts it from Python. The file holds what people said of
pairs and texts (`write_people`). The judge knows it, with noise, and adds its biases. For the answers A and B of a pair
as it stands in the file, with people's verdict y (1: A, 0: a tie, -1: B), it sees

    z = skill * y + noise of the pair + noise of the order
        + length * tanh(log(characters of A / characters of B)) + style * tanh(difference in Markdown marks)
        + position (if A is shown first; minus position, if B is)

Both noises are normal, together with a standard deviation of 1, and drawn from a digest of seed and texts. The biases
of each criterion are 0.7 to 1.3 times these. Below 0.3 in size the verdict is a tie, from 1.5 on a strong preference. A
text's grade is people's mean, with noise, and one and a half times the length bias in grades, to a whole number.

A model's name chooses its settings: `SETTINGS` as JSON. GET /stats counts the requests.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.request import urlopen

from aiohttp import web

_INPUT = re.compile(r"<(\w+)>\n(.*?)\n</>", re.DOTALL)
_MARKS = re.compile(r"^[ \t]*(?:[-*+•]|\d+[.)])[ \t]+\S|^#{1,6}[ \t]+\S|\*\*[^*\n]+\*\*", re.MULTILINE)
_OWN_NOISE = 0.5
"""The standard deviation of the noise that each order has for itself."""
_TIE, _STRONG = 0.3, 1.5


@dataclass(frozen=True)
class Bias:
    """A judge's skill and biases, and the seed of its noise."""

    skill: float = 1.2
    position: float = 0.0
    length: float = 0.0
    style: float = 0.0
    seed: int = 0

    @property
    def model(self) -> str:
        """The name under which the server plays this judge."""
        return json.dumps(asdict(self), separators=(",", ":")).replace("/", "")


class People:
    """What people said: of pairs by their texts in either order, and the mean grade of texts."""

    def __init__(self, said: Mapping[str, Any]) -> None:
        self.pairs = {tuple(key): (float(verdict), True) for *key, verdict in said["pairs"]}
        self.pairs |= {(c, i, b, a): (y, False) for (c, i, a, b), (y, _) in list(self.pairs.items())}
        self.grades = {tuple(key): float(grade) for *key, grade in said["grades"]}

    def verdict(self, bias: Bias, seen: Mapping[str, str]) -> str:
        """Of the answers as they are shown."""
        criterion, instruction, first, second = (
            seen[name] for name in ("criterion", "instruction", "answer_a", "answer_b")
        )
        y, as_filed = self.pairs[criterion, instruction, first, second]
        a, b = (first, second) if as_filed else (second, first)
        key = json.dumps([bias.seed, criterion, instruction, a, b])
        more = _factor(criterion)
        z = bias.skill * y + _normal(key) * math.sqrt(1 - _OWN_NOISE**2) + _normal(f"{key} {as_filed}") * _OWN_NOISE
        z += more * bias.length * math.tanh(math.log((1 + len(a)) / (1 + len(b))))
        z += more * bias.style * math.tanh(_marks(a) - _marks(b))
        z += more * bias.position * (1 if as_filed else -1)
        z = z if as_filed else -z
        if abs(z) < _TIE:
            return "A=B"
        winner, loser = ("A", "B") if z > 0 else ("B", "A")
        return f"{winner}{'>>' if abs(z) >= _STRONG else '>'}{loser}"

    def grade(self, bias: Bias, seen: Mapping[str, str]) -> str:
        """Of the text that is shown."""
        mean = self.grades[seen["criterion"], seen["text"]]
        noise = _normal(json.dumps([bias.seed, seen["criterion"], seen["text"]]))
        longer = math.tanh(math.log((1 + len(seen["text"])) / 200))
        return str(max(1, min(5, round(mean + 0.7 * noise + 1.5 * bias.length * longer))))


def write_people(path: Path, pairs: Iterable[Any], grades: Mapping[tuple[str, str], float] = {}) -> None:
    """Write what people said: `pairs` as `(criterion, Pair)`, and (criterion, text) → mean grade."""
    listed = [[criterion, pair.instruction, pair.answer_a, pair.answer_b, pair.verdict] for criterion, pair in pairs]
    said = {"pairs": listed, "grades": [[*key, grade] for key, grade in grades.items()]}
    path.write_text(json.dumps(said), encoding="utf-8")


def _factor(criterion: str) -> float:
    return 0.7 + 0.6 * random.Random(criterion).random()


def _normal(key: str) -> float:
    return random.Random(key).gauss(0, 1)


def _marks(text: str) -> float:
    return math.log1p(len(_MARKS.findall(text)))


class Server:
    """Answers chat requests as the judge that their model's name describes."""

    def __init__(self, people: People) -> None:
        self.people, self.requests = people, 0

    async def chat(self, request: web.Request) -> web.Response:
        self.requests += 1
        body = await request.json()
        content = body["messages"][-1]["content"]
        text = content if isinstance(content, str) else "".join(part["text"] for part in content)
        seen, bias = dict(_INPUT.findall(text)), Bias(**json.loads(body["model"]))
        judged = {"grade": self.people.grade(bias, seen)} if "text" in seen else {}
        judged = judged or {"verdict": self.people.verdict(bias, seen)}
        answer = json.dumps({"reason": "It is the more helpful one.", **judged})
        usage = {"prompt_tokens": len(text) // 4, "completion_tokens": len(answer) // 4}
        message = {"role": "assistant", "content": answer}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        more = {"total_tokens": sum(usage.values())}
        made = {"id": f"c{self.requests}", "object": "chat.completion", "created": 0, "model": body["model"]}
        return web.json_response({**made, "choices": [choice], "usage": usage | more})

    async def stats(self, _: web.Request) -> web.Response:
        return web.json_response({"requests": self.requests})


async def serve(people: People, parent: int) -> None:
    """Serve until SIGTERM or the parent's end."""
    server, app = Server(people), web.Application(client_max_size=10**8)
    app.add_routes([web.post("/v1/chat/completions", server.chat), web.get("/stats", server.stats)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    print(f"listening on http://127.0.0.1:{runner.addresses[0][1]}", flush=True)
    while os.getppid() == parent:
        try:
            await asyncio.wait_for(stop.wait(), 1.0)
            break
        except TimeoutError:
            continue
    await runner.cleanup()


class BiasedJudge:
    """The server in a process of its own, until the end of the `with` block."""

    def __init__(self, people: Path) -> None:
        command = [sys.executable, "-m", "benchmarks.biased_judge", str(people)]
        root = Path(__file__).resolve().parent.parent
        self.process = subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.root = self.process.stdout.readline().split()[-1]

    def __enter__(self) -> BiasedJudge:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.terminate()
        self.process.wait(5)
        if self.process.stdout is not None:
            self.process.stdout.close()

    def teacher(self, bias: Bias, **settings: Any) -> dict[str, Any]:
        """The settings of a teacher that is this judge, at a price of $1 a million tokens."""
        price = {"prompt": 1.0, "completion": 1.0}
        at = {"model": f"openai/{bias.model}", "api_base": f"{self.root}/v1", "price": price, "concurrency": 32}
        return {**at, "max_tokens": 200, **settings}

    @property
    def requests(self) -> int:
        with urlopen(f"{self.root}/stats") as answer:
            return int(json.load(answer)["requests"])


def main() -> None:
    people = People(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    asyncio.run(serve(people, os.getppid()))


if __name__ == "__main__":
    main()
