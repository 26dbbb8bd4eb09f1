"""A scorer behind an endpoint that returns the log-probabilities of a prompt's tokens, as vLLM's does.

The place where a text starts among a prompt's tokens must be known, so it is not guessed from characters: `POST
/tokenize` at the server's root turns the context, and context and text together, into tokens, and `POST
/v1/completions` gets these as its prompt, with `prompt_logprobs: 0` (the log-probability of each prompt token, no
others) and `max_tokens: 1` (the least that servers accept). Services without these endpoints, which echo a prompt as
text, are refused.
"""

from __future__ import annotations

import asyncio
import json
import math
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from dspy.lm15 import ProviderError, TransportError
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_attempt, wait_exponential_jitter

from refed_dspy.concurrency import all_of, run_blocking
from refed_dspy.config.keys import read_key, without_keys
from refed_dspy.connections import Connections, HttpReply, proxy_for
from refed_dspy.errors import ConfigError, TeacherError, one_line
from refed_dspy.plugins.metrics.perplexity import SEPARATOR, ScoredText, ScoringPrompt, join

_ATTEMPTS = 3
_MORE_IN_A_ROW = 4
"""An endpoint is given up once `concurrency` and this many texts in a row got no answer. One short outage fails all
requests that are open."""
_ENVELOPE, _BYTES_A_TOKEN = 1 << 20, 4_096
"""No answer is longer than the envelope, and so many bytes for each character or token that was sent."""
_BACKOFF, _LONGEST_WAIT = wait_exponential_jitter(initial=0.5, max=8, jitter=0.5), 60.0
"""Between two attempts; and the longest wait, in seconds, whatever a Retry-After says."""
_LEAST = -1e6
"""No log-probability is lower, but for minus infinity."""
_OTHER_WAY = "score with a vLLM server or a model on this machine"


class _NoAnswer(Exception):
    """A request got no usable answer. Another request may get one; so may the same one, where this is `passing`."""

    def __init__(self, why: str, *, passing: bool = True, retry_after: float = 0.0) -> None:
        super().__init__(why)
        self.passing, self.retry_after = passing, retry_after


class EndpointScorer:
    """An OpenAI-compatible endpoint at `api_base` (ends in /v1) that serves `model`.

    A text starts with what the server's tokenizer puts in front of a text (Llama's BOS), else with SEPARATOR where that
    is one token there (Qwen, GPT-2, SmolLM2): as with a `TransformersScorer`. Of other tokenizers the BOS cannot be
    asked for: a text's first token is not scored.

    The key is read from the environment variable named by `api_key_env`; it appears in no message and not in the repr.
    Every text is one call, which a hosted service bills: `calls` and `tokens` count those that were answered.
    """

    def __init__(
        self,
        model: str,
        api_base: str,
        api_key_env: str | None = None,
        concurrency: int = 8,
        *,
        timeout: float = 120.0,
    ) -> None:
        """`timeout`: seconds an attempt may take. Nothing is sent yet. Raises ConfigError for an address that is none
        or a variable not set."""
        if not api_base.startswith(("http://", "https://")):
            raise ConfigError(
                f"api_base {one_line(api_base, 80)}: give a full address such as http://localhost:8000/v1"
            )
        self.model, self.api_base = model, api_base.rstrip("/")
        self.calls = 0
        """Completions that were answered, so paid for."""
        self.tokens = 0
        """Prompt tokens of those."""
        self.unanswered = 0
        """Texts that got no answer."""
        self._concurrency = concurrency
        self._start_and_window: tuple[list[int], int] | None = None
        self._in_a_row = 0
        self._timeout, self._key_env = timeout, api_key_env
        self._http = Connections(proxy_for(self.api_base))
        self._one_at_a_time = threading.Lock()
        _key(api_key_env)

    def __repr__(self) -> str:
        return f"EndpointScorer({self.model!r}, {_place(self.api_base)!r})"

    def nll(self, contexts: Sequence[str], texts: Sequence[str]) -> list[ScoredText | None]:
        """See `Scorer`. `concurrency` requests are open at once; None where a text got no answer after all attempts.

        Raises ConfigError where the endpoint refuses the key or the model, or returns no prompt log-probabilities, and
        TeacherError once four texts more than `concurrency`, in a row, got no answer.
        """
        if not any(texts):
            return [ScoredText(0.0, 0) for _ in texts]
        with self._one_at_a_time:  # from several threads, too: connections belong to one event loop
            return run_blocking(self._all(contexts, texts))

    async def _all(self, contexts: Sequence[str], texts: Sequence[str]) -> list[ScoredText | None]:
        scores: list[ScoredText | None] = [None] * len(texts)
        places = iter(range(len(texts)))

        async def worker() -> None:
            for at in places:
                scores[at] = await self._score(contexts[at], texts[at])

        try:
            if self._start_and_window is None:
                self._start_and_window = await self._read_start_and_window()
            await all_of(worker() for _ in range(self._concurrency))  # an error ends all: no further text is paid for
        finally:
            await self._http.aclose()
        return scores

    async def _score(self, context: str, text: str) -> ScoredText | None:
        assert self._start_and_window is not None
        start, window = self._start_and_window
        try:
            first, whole = len(await self._ids(context)), await self._ids(context + text if text else "")
            prompt = join(start, whole[:first], whole[first:], window)
            scored = ScoredText(await self._nll(prompt) if prompt.scored else 0.0, prompt.scored)
        except _NoAnswer as error:
            self.unanswered += 1
            self._in_a_row += 1
            if self._in_a_row >= self._concurrency + _MORE_IN_A_ROW:
                raise TeacherError(
                    f"{_place(self.api_base)} gave no answer {self._in_a_row} times in a row ({error}; {self.calls} "
                    "calls answered); check the server, then score again"
                ) from error
            return None
        self._in_a_row = 0
        return scored

    async def _read_start_and_window(self) -> tuple[list[int], int]:
        """The tokens that a document starts with, and the window."""
        try:
            empty = await self._tokenize("", special=True)
            start = empty["tokens"]
            if not start and len(separator := await self._ids(SEPARATOR)) == 1:
                start = separator
            if not await self._ids("a"):  # llama.cpp's /tokenize reads another field, so it sees no text
                raise self._unfit("answers /tokenize without tokens")
        except _NoAnswer as error:
            raise TeacherError(f"{_place(self.api_base)} gave no answer ({error}); check the server") from error
        served = _whole(empty.get("max_model_len"))
        # A token of it is for the answer, which is thrown away.
        return start, 4_096 if served is None else served - 1

    async def _ids(self, text: str) -> list[int]:
        return list((await self._tokenize(text, special=False))["tokens"]) if text else []

    async def _tokenize(self, text: str, *, special: bool) -> Mapping[str, Any]:
        root = self.api_base.removesuffix("/v1")
        body = {"model": self.model, "prompt": text, "add_special_tokens": special}
        answer = await self._post(f"{root}/tokenize", body, len(text))
        tokens = answer.get("tokens")
        if not isinstance(tokens, list) or not all(type(token) is int for token in tokens):
            raise self._unfit("answers /tokenize without tokens")
        return answer

    async def _nll(self, prompt: ScoringPrompt) -> float:
        body = {"model": self.model, "prompt": prompt.ids, "max_tokens": 1, "temperature": 0, "prompt_logprobs": 0}
        answer = await self._post(f"{self.api_base}/completions", body, len(prompt.ids))
        usage = answer.get("usage")
        reported = _whole(usage.get("prompt_tokens")) if isinstance(usage, Mapping) else None
        self.calls += 1
        self.tokens += len(prompt.ids) if reported is None else reported
        try:
            places = answer["choices"][0].get("prompt_logprobs")
        except (KeyError, IndexError, TypeError, AttributeError):
            places = None
        if not places:
            raise self._unfit("does not return the log-probabilities of a prompt (prompt_logprobs)")
        return -math.fsum(self._logprobs(places, prompt))

    def _logprobs(self, places: Any, prompt: ScoringPrompt) -> list[float]:
        """The log-probabilities of the text's tokens: a place may list likelier tokens too."""
        first = len(prompt.ids) - prompt.scored
        try:
            if len(places) != len(prompt.ids):
                raise ValueError("another length")
            logprobs = [float(places[at][str(prompt.ids[at])]["logprob"]) for at in range(first, len(prompt.ids))]
        except (KeyError, TypeError, ValueError) as error:
            raise self._unfit("returns log-probabilities for tokens it was not sent") from error
        if not all(value <= 1e-6 for value in logprobs):
            raise self._unfit("returns log-probabilities above 0")
        if any(-math.inf < value < _LEAST for value in logprobs):
            raise self._unfit("returns log-probabilities that no token has")
        return logprobs

    async def _post(self, address: str, body: dict[str, Any], sent: int) -> Mapping[str, Any]:
        """The JSON object in the answer to `sent` characters or tokens. Raises _NoAnswer after the last attempt."""
        async for attempt in AsyncRetrying(
            stop=stop_after_attempt(_ATTEMPTS),
            wait=_wait,
            retry=retry_if_exception(lambda error: isinstance(error, _NoAnswer) and error.passing),
            reraise=True,
        ):
            with attempt:
                status, raw, retry_after = await self._answer(address, json.dumps(body).encode(), sent)
                if status >= 300:
                    raise self._failed(status, address, retry_after)
                try:
                    answer = json.loads(raw)
                except (ValueError, RecursionError):
                    answer = None
                if not isinstance(answer, Mapping):
                    raise self._unfit("answers with something other than JSON, perhaps a web page")
                return answer
        raise AssertionError("tenacity ends by returning or raising")

    async def _answer(self, address: str, body: bytes, sent: int) -> tuple[int, bytes, float]:
        """(HTTP status, body, seconds that the server asks to wait) of the answer."""
        headers = [("Content-Type", "application/json")]
        if self._key_env is not None or "@" not in self.api_base:  # else the address has a name and password in it
            headers.append(("Authorization", f"Bearer {_key(self._key_env)}"))
        most = _ENVELOPE + _BYTES_A_TOKEN * sent
        try:
            async with (
                asyncio.timeout(self._timeout),
                self._http.ask("POST", address, headers, body, most=most) as reply,
            ):
                return reply.status, await reply.read(), _asked_wait(reply)
        except TimeoutError:
            raise _NoAnswer("no answer in time") from None
        except TransportError:
            raise _NoAnswer("no connection") from None
        except ProviderError:
            raise self._unfit("answers with more than was asked for") from None

    def _failed(self, status: int, address: str, retry_after: float) -> Exception:
        """The error for an answer of this status. Its text is not told: it may quote the key."""
        passing = status in (408, 409, 429) or status >= 500
        if passing or (self.calls and status in (400, 413, 422)):  # a text that the model cannot take
            return _NoAnswer(f"HTTP {status}", passing=passing, retry_after=retry_after)
        return self._refused(status, address)

    def _refused(self, status: int, path: str) -> ConfigError:
        where = _place(self.api_base)
        if 300 <= status < 400:
            return ConfigError(f"{where} redirects to another address (HTTP {status}); set api_base to that address")
        if status in (401, 403):
            return ConfigError(
                f"{where} refused the key (HTTP {status}); set api_key_env to the variable that holds the right one"
            )
        if status in (404, 405) and path.endswith("/tokenize"):
            return ConfigError(f"{where} has no /tokenize (HTTP {status}), unlike vLLM's server; {_OTHER_WAY}")
        name = one_line(self.model, 60)
        return ConfigError(f"{where} refused to score with {name} (HTTP {status}); check the name, or {_OTHER_WAY}")

    def _unfit(self, fault: str) -> ConfigError:
        return ConfigError(f"{_place(self.api_base)} {fault}: {_OTHER_WAY}")


def _asked_wait(reply: HttpReply) -> float:
    """Seconds of a Retry-After; 0 where there is none."""
    asked = next((value for name, value in reply.headers if name.lower() == "retry-after"), "")
    return float(asked) if asked.isascii() and asked.isdecimal() else 0.0


def _wait(state: RetryCallState) -> float:
    """Seconds until the next attempt: half a second and more, or as long as the server asks for."""
    error = state.outcome.exception() if state.outcome else None
    asked = error.retry_after if isinstance(error, _NoAnswer) else 0.0
    return max(_BACKOFF(state), min(asked, _LONGEST_WAIT))


def _key(variable: str | None) -> str:
    if variable is None:
        return "none"  # set, so that the client does not read OPENAI_API_KEY
    if not (key := read_key(variable, "scorer")):
        raise ConfigError(f"the environment variable {one_line(variable, 60)} is not set; put the endpoint's key there")
    return key


def _place(api_base: str) -> str:
    """The address for messages, without a password or key that it may contain."""
    scheme, _, rest = api_base.partition("://")
    return one_line(without_keys(f"{scheme}://{rest.rsplit('@', 1)[-1]}".partition("?")[0]), 80)


def _whole(value: object) -> int | None:
    """`value` where it is a positive whole number, else None."""
    return value if type(value) is int and value > 0 else None
