"""Perplexities by hand and through an endpoint that answers as vLLM does, from a toy model whose figures are exact."""

from __future__ import annotations

import itertools
import json
import math
import re
import socket
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator, Sequence
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from refed_dspy.errors import ConfigError, TeacherError
from refed_dspy.metrics.perplexity import GUESS, ScoredText, check_window, ifd, join
from refed_dspy.metrics.transformers_scorer import EndpointScorer

KEY, VARIABLE = "sk-toy-0123456789", "TOY_SCORER_KEY"
BOS, KINDS = 1, 97
HOSTILE = ["!?", "漢字かな", "nul\0byte", "line\nbreak", "{0} %s {x}", "x" * 3_000, "नमस्ते", "🙂"]


def tokens(text: str) -> list[int]:
    """Two characters a token: so a joined text makes other tokens than its parts."""
    return [2 + zlib.crc32(text[at : at + 2].encode()) % KINDS for at in range(0, len(text), 2)]


@cache
def logprob(before: int, token: int) -> float:
    weights = [1 + (before * 31 + kind * 17) % 13 for kind in range(KINDS + 2)]
    return math.log(weights[token] / sum(weights))


def surprise(ids: Sequence[int], first: int) -> float:
    return -math.fsum(logprob(ids[at - 1], ids[at]) for at in range(first, len(ids)))


class Toy(ThreadingHTTPServer):
    """The toy model behind vLLM's two doors. `fault` makes it misbehave; `bos`: whether its tokenizer adds one."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Door)
        self.url = f"http://127.0.0.1:{self.server_port}/v1"
        self.rest()

    def handle_error(self, *_: Any) -> None:
        """Nothing: faults are meant."""

    def rest(self) -> None:
        self.fault, self.bos, self.window, self.key = "", True, 4096, ""
        self.prompts: list[list[int]] = []
        self.busy = self.most_busy = 0


class _Door(BaseHTTPRequestHandler):
    server: Toy

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.server.key and self.headers["authorization"] != f"Bearer {self.server.key}":
            return self.send(401, json.dumps({"error": f"wrong key {self.headers['authorization']}"}))
        if self.path == "/tokenize":
            return self.tokenize(body)
        self.server.prompts.append(body["prompt"])
        self.server.busy += 1
        self.server.most_busy = max(self.server.most_busy, self.server.busy)
        time.sleep(0.01)
        self.server.busy -= 1
        return self.complete(body)

    def tokenize(self, body: dict[str, Any]) -> None:
        if self.server.fault == "no tokenize":
            return self.send(404, '{"detail": "Not Found"}')
        ids = tokens(body["prompt"])
        if body["add_special_tokens"] and self.server.bos:
            ids = [BOS, *ids]
        if self.server.fault == "llama.cpp":
            ids = []
        return self.send(200, json.dumps({"count": len(ids), "max_model_len": self.server.window, "tokens": ids}))

    def complete(self, body: dict[str, Any]) -> None:
        ids, fault = body["prompt"], self.server.fault
        assert isinstance(ids, list) and len(ids) < self.server.window
        if fault == "400 for long" and len(ids) > 100:
            return self.send(400, "{}")
        if fault.isdigit():
            return self.send(int(fault), '{"error": "sorry"}')
        if fault == "html":
            return self.send(200, "<html>Sign in</html>", "text/html")
        if fault == "half json":
            return self.send(200, '{"choices": [')
        if fault == "slow":
            time.sleep(3)
        if fault == "hang up":
            return self.close_connection_now()
        return self.send(200, json.dumps(self.answer(ids, fault)))

    def answer(self, ids: list[int], fault: str) -> dict[str, Any]:
        places: list[Any] = [None]
        for before, token in itertools.pairwise(ids):
            place = {str(token): {"logprob": logprob(before, token), "rank": 2, "decoded_token": "x"}}
            if fault == "crowded":  # likelier tokens first
                other = 2 + token % KINDS
                place = {str(other): {"logprob": -1e-9, "rank": 1, "decoded_token": "y"}, **place}
            places.append(place)
        changed = {"one short": places[:-1], "others": [None] + [{"999": {"logprob": -1.0}}] * (len(ids) - 1)}
        changed["above 0"] = [None] + [{str(token): {"logprob": 0.5}} for token in ids[1:]]
        choice = {"text": "a", "prompt_logprobs": changed.get(fault, places)}
        if fault == "no logprobs":
            del choice["prompt_logprobs"]
        usage = {} if fault == "no usage" else {"usage": {"prompt_tokens": len(ids)}}
        return {"choices": [] if fault == "no choice" else [choice], **usage}

    def close_connection_now(self) -> None:
        self.connection.shutdown(socket.SHUT_RDWR)

    def send(self, status: int, content: str, kind: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(content.encode())))
        self.end_headers()
        self.wfile.write(content.encode())

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture(scope="module")
def running() -> Iterator[Toy]:
    with Toy() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def toy(running: Toy) -> Toy:
    running.rest()
    return running


def scorer(toy: Toy, **settings: Any) -> EndpointScorer:
    return EndpointScorer("toy", toy.url, **{"attempts": 1, **settings})


# By hand


def test_perplexity_is_the_exponential_of_the_mean() -> None:
    assert ScoredText(3 * math.log(7), 3).perplexity == pytest.approx(7)
    assert ScoredText(0.0, 0).perplexity is None and ScoredText(0.0, 0).mean is None
    assert ScoredText(1e6, 1).perplexity is None
    assert ScoredText(math.inf, 3).perplexity is None


def test_the_text_makes_the_same_tokens_under_every_context() -> None:
    for length in (0, 1, 5, 12, 13, 100):
        text = list(range(length))
        for start in ([], [99]):
            made = [join(start, [7] * context, text, 17) for context in (0, 1, 4, 50)]
            assert all(len(one.ids) <= 17 for one in made)
            assert len({(one.scored, one.cut) for one in made}) == 1
            kept = length - made[0].cut
            assert all(one.ids[len(one.ids) - kept :] == text[:kept] for one in made)
            assert all(one.ids[: len(start)] == start for one in made)
            assert made[0].scored == (kept if start else max(0, kept - 1))


def test_a_long_context_keeps_its_end_and_a_long_text_its_beginning() -> None:
    made = join([0], list(range(100, 200)), list(range(1, 51)), 41)
    assert made.ids == [0, *range(190, 200), *range(1, 31)]
    assert (made.scored, made.cut, made.context_cut) == (30, 20, 90)
    short = join([0], list(range(100, 103)), [1, 2], 41)
    assert short.ids == [0, 100, 101, 102, 1, 2] and (short.cut, short.context_cut) == (0, 0)


class Listed:
    """A scorer that answers from a list, and remembers what it was asked."""

    def __init__(self, known: dict[tuple[str, str], ScoredText | None]) -> None:
        self.known = known
        self.asked: list[tuple[str, str]] = []

    def nll(self, contexts: Sequence[str], texts: Sequence[str]) -> list[ScoredText | None]:
        self.asked += zip(contexts, texts, strict=True)
        return [self.known[question] for question in zip(contexts, texts, strict=True)]


def test_ifd_is_the_ratio_of_perplexities() -> None:
    known: dict[tuple[str, str], ScoredText | None] = {
        ("", "ask"): ScoredText(2 * math.log(30), 2),
        ("", "tell"): ScoredText(3 * math.log(50), 3, cut=1),
        ("ask\n", "tell"): ScoredText(3 * math.log(20), 3),
        (f"tell\n{GUESS}\n", "ask"): ScoredText(2 * math.log(12), 2),
    }
    model = Listed(known)
    (found,) = ifd(model, [("ask", "tell")])
    assert found.ifd == pytest.approx(20 / 50)
    assert found.r_ifd == pytest.approx(12 / 30)
    assert (found.ppl_instruction, found.ppl_answer) == pytest.approx((30, 50))
    assert (found.ppl_answer_given_instruction, found.ppl_instruction_given_answer) == pytest.approx((20, 12))
    assert (found.tokens_instruction, found.tokens_answer, found.cut) == (2, 3, True)
    assert ifd(model, [("ask", "tell")] * 5) == [found] * 5
    assert len(model.asked) == 8  # four a call of `ifd`, however often a pair is there


def test_what_has_no_meaning_is_none() -> None:
    known: dict[tuple[str, str], ScoredText | None] = {
        ("", "ask"): ScoredText(2.0, 2), ("", "tell"): ScoredText(0.0, 0), ("ask\n", "tell"): ScoredText(0.0, 0),
        (f"tell\n{GUESS}\n", "ask"): None,
    }  # fmt: skip
    model = Listed(known)
    blank, silent, nothing = ifd(model, [("ask", " \n"), ("ask", "tell"), ("", "")])
    assert (blank.ifd, blank.r_ifd, blank.ppl_answer) == (None, None, None)
    assert blank.ppl_instruction == pytest.approx(math.e)
    assert (silent.ifd, silent.r_ifd, silent.ppl_answer, silent.ppl_instruction_given_answer) == (None,) * 4
    assert nothing.ppl_instruction is nothing.ifd is None
    assert all(text.strip() for _, text in model.asked)
    assert ifd(model, []) == []


def test_a_ratio_of_perplexities_too_large_for_a_float_is_still_told() -> None:
    known: dict[tuple[str, str], ScoredText | None] = {
        ("", "a"): ScoredText(900.0, 1), ("", "b"): ScoredText(900.0, 1), ("a\n", "b"): ScoredText(901.0, 1),
        (f"b\n{GUESS}\n", "a"): ScoredText(math.inf, 1),
    }  # fmt: skip
    (found,) = ifd(Listed(known), [("a", "b")])
    assert found.ppl_answer is None
    assert found.ifd == pytest.approx(math.e)
    assert found.r_ifd is None


# Through the endpoint


@pytest.mark.parametrize("fault", ["", "crowded", "no usage"])
def test_the_endpoint_gives_the_models_own_figures(toy: Toy, fault: str) -> None:
    toy.fault = fault
    contexts = ["", "odd", "even", "", "three\n", *HOSTILE]
    texts = ["hello there", "hello there", "hello there", "", "x", *reversed(HOSTILE)]
    asker = scorer(toy)
    found = asker.nll(contexts, texts)
    for context, text, one in zip(contexts, texts, found, strict=True):
        ids = [BOS, *tokens(context), *tokens(text)]
        assert one is not None
        assert one.tokens == len(tokens(text))
        assert one.nll == pytest.approx(surprise(ids, len(ids) - len(tokens(text))), rel=1e-12)
    assert asker.calls == len(texts) - 1 == len(toy.prompts)
    assert asker.tokens == sum(map(len, toy.prompts))
    assert asker.unanswered == 0


def test_ifd_through_the_endpoint(toy: Toy) -> None:
    (found,) = ifd(scorer(toy), [("Name a colour.", "Blue is one.")])
    asked, answered = tokens("Name a colour."), tokens("Blue is one.")
    alone = surprise([BOS, *answered], 1) / len(answered)
    given = surprise([BOS, *tokens("Name a colour.\n"), *answered], 1 + len(tokens("Name a colour.\n"))) / len(answered)
    before = [BOS, *tokens(f"Blue is one.\n{GUESS}\n")]
    guessed = surprise([*before, *asked], len(before)) / len(asked)
    assert found.ifd == pytest.approx(math.exp(given - alone))
    assert found.r_ifd == pytest.approx(math.exp(guessed - surprise([BOS, *asked], 1) / len(asked)))


def test_without_a_first_token_the_texts_first_is_not_scored(toy: Toy) -> None:
    toy.bos = False
    alone, given, single = scorer(toy).nll(["", "on", ""], ["abcdef", "abcdef", "ab"])
    assert alone is not None and given is not None and single is not None
    assert alone.tokens == given.tokens == 2
    assert alone.nll == pytest.approx(surprise(tokens("abcdef"), 1))
    assert single == ScoredText(0.0, 0)
    assert len(toy.prompts) == 2
    (named,) = scorer(toy, start="<>").nll([""], ["abcdef"])
    assert named is not None
    assert named.nll == pytest.approx(surprise([*tokens("<>"), *tokens("abcdef")], 1))


def test_nothing_is_sent_beyond_the_window(toy: Toy) -> None:
    toy.window = 41  # one of them for the token that is thrown away
    (one,) = scorer(toy).nll(["c" * 400], ["t" * 100])
    assert one is not None
    assert (one.tokens, one.cut, one.context_cut) == (29, 21, 190)
    assert len(toy.prompts[0]) == 40
    (less,) = scorer(toy, max_tokens=20).nll([""], ["t" * 100])
    assert less is not None and less.tokens == 14


def test_as_many_requests_are_open_as_were_asked_for(toy: Toy) -> None:
    texts = [f"text {index}" for index in range(30)]
    asker = scorer(toy, concurrency=4)
    found = asker.nll([""] * 30, texts)
    assert [one and one.nll for one in found] == [pytest.approx(surprise([BOS, *tokens(text)], 1)) for text in texts]
    assert 2 <= toy.most_busy <= 4


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("no logprobs", "does not return the log-probabilities of a prompt"),
        ("no choice", "does not return the log-probabilities of a prompt"),
        ("one short", "of other tokens than it was sent"),
        ("others", "of other tokens than it was sent"),
        ("above 0", "above 0"),
        ("html", "a web page perhaps"),
        ("half json", "something else than JSON"),
        ("no tokenize", r"has no /tokenize \(HTTP 404\)"),
        ("llama.cpp", "/tokenize without tokens"),
        ("404", "check the name"),
        ("400", "check the name"),
    ],
)
def test_an_endpoint_that_cannot_score_is_refused_in_one_line(toy: Toy, fault: str, told: str) -> None:
    toy.fault = fault
    with pytest.raises(ConfigError, match=told) as caught:
        scorer(toy, concurrency=1).nll([""] * 9, ["text"] * 9)
    assert "vLLM" in str(caught.value) and "\n" not in str(caught.value)
    assert len(toy.prompts) <= 1  # the rest is not paid for


def test_a_wrong_key_is_refused_and_never_shown(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    toy.key = "another"
    monkeypatch.setenv(VARIABLE, KEY)
    asker = scorer(toy, api_key_env=VARIABLE)
    with pytest.raises(ConfigError, match=r"refuses the key \(HTTP 401\).*api_key_env") as caught:
        asker.nll([""], ["text"])
    assert KEY not in f"{caught.value}{asker!r}{vars(asker)}"
    toy.key = KEY
    assert scorer(toy, api_key_env=VARIABLE).nll([""], ["text"])[0] is not None


def test_a_key_is_taken_from_the_named_variable_only(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    toy.key = KEY
    with pytest.raises(ConfigError, match="refuses the key"):
        scorer(toy).nll([""], ["text"])
    with pytest.raises(ConfigError, match=f"{VARIABLE} is not set"):
        scorer(toy, api_key_env=VARIABLE)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "told"), [("500", "HTTP 500"), ("hang up", "no connection"), ("slow", "no answer in time")]
)
def test_an_endpoint_that_stays_silent_is_given_up(toy: Toy, fault: str, told: str) -> None:
    toy.fault = fault
    asker = scorer(toy, concurrency=5, timeout=1 if fault == "slow" else 30)
    with pytest.raises(TeacherError, match=rf"no answer (9|1\d) times in a row .{told}.*0 calls answered") as caught:
        asker.nll([""] * 40, ["text"] * 40)
    assert "\n" not in str(caught.value)
    assert 9 <= len(toy.prompts) <= 15


def test_one_text_without_an_answer_costs_no_other(toy: Toy) -> None:
    toy.fault = "400 for long"
    asker = scorer(toy, concurrency=1)
    texts = ["short", "t" * 400, "brief"] * 6
    found = asker.nll([""] * 18, texts)
    assert [one is None for one in found] == [False, True, False] * 6
    assert (asker.calls, asker.unanswered) == (12, 6)


def test_a_passing_error_is_tried_again(toy: Toy) -> None:
    toy.fault = "500"
    timer = threading.Timer(0.2, setattr, (toy, "fault", ""))
    timer.start()
    assert scorer(toy, attempts=4).nll([""], ["text"])[0] is not None
    timer.join()


def test_a_dead_endpoint_is_told() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://user:secret@127.0.0.1:{taken.getsockname()[1]}/v1"
        asker = EndpointScorer("toy", url, attempts=1)
        with pytest.raises(TeacherError, match="no connection") as caught:
            asker.nll([""], ["text"])
    assert "secret" not in f"{caught.value}{asker!r}"


def test_empty_texts_ask_nothing(toy: Toy) -> None:
    assert scorer(toy).nll(["a", ""], ["", ""]) == [ScoredText(0.0, 0)] * 2
    assert toy.prompts == []


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"concurrency": 0}, "1 or more"),
        ({"attempts": 0}, "1 or more"),
        ({"timeout": 0}, "above 0"),
        ({"api_base": "localhost:8000"}, "whole address"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        EndpointScorer(**{"model": "toy", "api_base": "http://localhost/v1", **settings})
    with pytest.raises(ConfigError, match="16 or more"):
        check_window(15)


def test_contexts_and_texts_come_in_pairs(toy: Toy) -> None:
    with pytest.raises(ConfigError, match="1 contexts and 2 texts"):
        scorer(toy).nll([""], ["a", "b"])


@pytest.mark.slow
def test_without_torch_the_extra_is_named() -> None:
    # In a process of its own, where torch cannot be found.
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from refed_dspy.metrics.transformers_scorer import TransformersScorer\n"
        "from refed_dspy.errors import ConfigError\n"
        "try: TransformersScorer('x')\n"
        "except ConfigError as error: print(error)\n"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert re.fullmatch(r'.*pip install "refed-dspy\[scoring\]".*\n', told)
