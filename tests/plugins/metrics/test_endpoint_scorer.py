"""The scorer behind an endpoint, against a server that answers as vLLM does, from a toy model with exact figures."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from refed_dspy.errors import ConfigError, TeacherError
from refed_dspy.plugins.metrics.endpoint_scorer import EndpointScorer
from refed_dspy.plugins.metrics.perplexity import ScoredText
from tests.support.recording_endpoint import listening
from tests.support.refusals import refusal
from tests.support.said import Said
from tests.support.toy_server import BOS, KEY, ToyServer, nll, tokens, toy_served

VARIABLE = "TOY_SCORER_KEY"
HOSTILE = ["!?", "漢字かな", "nul\0byte", "line\nbreak", "{0} %s {x}", "x" * 3_000, "नमस्ते", "🙂"]


@pytest.fixture(scope="module")
def running() -> Iterator[ToyServer]:
    with toy_served() as server:
        yield server


@pytest.fixture
def toy(running: ToyServer) -> ToyServer:
    running.reset()
    return running


def open_scorer(toy: ToyServer, **settings: Any) -> EndpointScorer:
    return EndpointScorer("toy", toy.url, **settings)


@pytest.mark.parametrize("fault", ["", "crowded", "no usage"])
def test_the_endpoint_gives_the_models_own_figures(toy: ToyServer, fault: str) -> None:
    toy.fault = fault
    contexts = ["", "odd", "even", "", "three\n", *HOSTILE]
    texts = ["hello there", "hello there", "hello there", "", "x", *reversed(HOSTILE)]
    scorer = open_scorer(toy)
    scores = scorer.nll(contexts, texts)
    for context, text, score in zip(contexts, texts, scores, strict=True):
        ids, first = [BOS, *tokens(context + text)], 1 + len(tokens(context))
        assert score is not None
        assert score.tokens == (len(ids) - first if text else 0)
        assert score.nll == pytest.approx(nll(ids, first) if text else 0, rel=1e-12)
    assert scorer.calls == len(texts) - 1 == len(toy.prompts)
    assert scorer.tokens == sum(map(len, toy.prompts))
    assert scorer.unanswered == 0
    assert scorer.nll(["a", ""], ["", ""]) == [ScoredText(0.0, 0)] * 2 and len(toy.prompts) == scorer.calls


def test_without_a_first_token_the_texts_first_is_not_scored_unless_a_separator_is_there(toy: ToyServer) -> None:
    toy.bos = False
    alone, in_context, single = open_scorer(toy).nll(["", "on", ""], ["abcdef", "abcdef", "ab"])
    assert alone is not None and in_context is not None and single == ScoredText(0.0, 0)
    assert alone.tokens == in_context.tokens == 2
    assert alone.nll == pytest.approx(nll(tokens("abcdef"), 1))
    assert in_context.nll == pytest.approx(nll(tokens("onabcdef"), 2))
    assert len(toy.prompts) == 2
    toy.separator = True
    (score,) = open_scorer(toy).nll([""], ["abcdef"])
    assert score is not None and score.tokens == 3
    assert score.nll == pytest.approx(nll([BOS, *tokens("abcdef")], 1))


def test_nothing_is_sent_beyond_the_window(toy: ToyServer) -> None:
    toy.window = 41  # one of them for the token that is thrown away
    (score,) = open_scorer(toy).nll(["c" * 400], ["t" * 100])
    assert score is not None and score.tokens == 29 and len(toy.prompts[0]) == 40


def test_as_many_requests_are_open_as_were_asked_for(toy: ToyServer) -> None:
    texts = [f"text {index}" for index in range(12)]
    scorer = open_scorer(toy, concurrency=4)
    scores = scorer.nll([""] * 12, texts)
    assert [score and score.nll for score in scores] == [pytest.approx(nll([BOS, *tokens(text)], 1)) for text in texts]
    assert 2 <= toy.most_busy <= 4


@pytest.mark.parametrize(
    "fault",
    [
        "no logprobs", "no choice", "one short", "others", "above 0", "html", "half json", "no tokenize", "llama.cpp",
        "404", "400",
    ],
)  # fmt: skip
def test_an_endpoint_that_cannot_score_is_refused_in_one_line(said: Said, toy: ToyServer, fault: str) -> None:
    toy.fault = fault
    scorer = open_scorer(toy, concurrency=1)
    said(refusal(ConfigError, scorer.nll, [""] * 9, ["text"] * 9).replace(toy.url, "URL"))
    assert len(toy.prompts) <= 1  # the rest is not paid for


def test_a_wrong_key_is_refused_and_never_shown(said: Said, toy: ToyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    toy.key = "another"
    monkeypatch.setenv(VARIABLE, KEY)
    scorer = open_scorer(toy, api_key_env=VARIABLE)
    told = refusal(ConfigError, scorer.nll, [""], ["text"])
    said(told)
    assert KEY not in f"{told}{scorer!r}{vars(scorer)}"
    toy.key = KEY
    monkeypatch.setenv(VARIABLE, f" {KEY}\r\n")
    assert open_scorer(toy, api_key_env=VARIABLE).nll([""], ["text"])[0] is not None, "it is stripped"
    monkeypatch.setenv(VARIABLE, f"{KEY}\n{KEY}")
    told = refusal(ConfigError, open_scorer, toy, api_key_env=VARIABLE)
    said(told)
    assert KEY not in told


def test_a_key_is_taken_from_the_named_variable_only(
    said: Said, toy: ToyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    toy.key = KEY
    said(refusal(ConfigError, open_scorer(toy).nll, [""], ["text"]))
    said(refusal(ConfigError, open_scorer, toy, api_key_env=VARIABLE))


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["500", "hang up", "slow"])
def test_an_endpoint_that_stays_silent_is_given_up(said: Said, toy: ToyServer, fault: str) -> None:
    toy.fault = fault
    scorer = open_scorer(toy, concurrency=5, timeout=1 if fault == "slow" else 30)
    said(refusal(TeacherError, scorer.nll, [""] * 40, ["text"] * 40))
    assert 9 * 3 <= len(toy.prompts) <= 15 * 3  # three attempts each


def test_one_text_without_an_answer_costs_no_other(toy: ToyServer) -> None:
    toy.fault = "400 for long"
    scorer = open_scorer(toy, concurrency=1)
    scores = scorer.nll([""] * 9, ["short", "t" * 400, "brief"] * 3)
    assert [score is None for score in scores] == [False, True, False] * 3
    assert (scorer.calls, scorer.unanswered) == (6, 3)


def test_a_passing_error_is_tried_again(toy: ToyServer) -> None:
    toy.fault = "500"
    timer = threading.Timer(0.2, setattr, (toy, "fault", ""))
    timer.start()
    assert open_scorer(toy).nll([""], ["text"])[0] is not None
    timer.join()


def test_one_scorer_serves_several_threads(toy: ToyServer) -> None:
    scorer, came = open_scorer(toy), list[list[ScoredText | None]]()
    threads = [threading.Thread(target=lambda: came.append(scorer.nll([""] * 5, ["text"] * 5))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(came) == 4 and all(score is not None for scores in came for score in scores)


@pytest.mark.slow
def test_a_dead_endpoint_is_reported(said: Said) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        scorer = EndpointScorer("toy", f"http://user:secret@127.0.0.1:{taken.getsockname()[1]}/v1")
        told = refusal(TeacherError, scorer.nll, [""], ["text"])
    said(told)
    assert "secret" not in f"{told}{scorer!r}"


def test_an_address_without_a_scheme_is_refused(said: Said) -> None:
    said(refusal(ConfigError, EndpointScorer, "toy", "localhost:8000"))


def test_a_redirect_to_another_host_is_not_followed(said: Said) -> None:
    statuses = [301, 302, 303, 307, 308]

    class Elsewhere(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(statuses[0])
            self.send_header("Location", f"{stranger.root}/v1/completions")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    with listening(lambda headers: (200, {})) as stranger, ThreadingHTTPServer(("127.0.0.1", 0), Elsewhere) as http:
        threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True).start()
        try:
            while statuses:
                scorer = EndpointScorer("toy", f"http://127.0.0.1:{http.server_address[1]}/v1")
                said(refusal(ConfigError, scorer.nll, [""], ["a text"]))
                statuses.pop(0)
        finally:
            http.shutdown()
    assert not stranger.headers
