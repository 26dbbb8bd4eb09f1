"""What is taken out of texts as a key, and what is not; what settings are refused because they hold one."""

from __future__ import annotations

import base64
import html
import json
import random
import string
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import pytest

from refed_dspy import TeacherConfig
from refed_dspy.config.keys import CUT, LEAST, checked, know, know_environment, know_settings, read_key, without_keys
from refed_dspy.config.loading import load_config
from refed_dspy.config.run import RunConfig
from refed_dspy.errors import ConfigError, ModelError
from tests.support.refusals import refusal
from tests.support.said import Said

ODD = "sk-Ab+/=\"\\'&<%~" + "x9Yz" * 4
PLAIN = "sk-" + "".join(random.Random(3).choices(string.ascii_letters + string.digits, k=47))
GONE = "[key]"
FORMS: dict[str, Callable[[str], str]] = {
    "plain": str,
    "repr": lambda key: repr(key)[1:-1],
    "json": lambda key: json.dumps(key)[1:-1],
    "json of PHP": lambda key: json.dumps(key)[1:-1].replace("/", "\\/"),
    "json of .NET": lambda key: key.translate({ord(letter): f"\\u{ord(letter):04X}" for letter in "+=\"\\'&<%"}),
    "address": lambda key: quote(key, safe=""),
    "path": quote,
    "parameter": quote_plus,
    "lower": lambda key: quote(key, safe="").replace("%2B", "%2b").replace("%2F", "%2f").replace("%3D", "%3d")
    .replace("%5C", "%5c").replace("%3C", "%3c"),
    "page": html.escape,
}  # fmt: skip


@pytest.mark.parametrize("key", [PLAIN, ODD, PLAIN * 40], ids=["plain", "odd", "2000 letters"])
def test_every_form_of_a_key_is_taken_out_and_nothing_else(key: str) -> None:
    know(key)
    for form, written in FORMS.items():
        assert without_keys(f"before {written(key)}, after") == f"before {GONE}, after", form


@pytest.mark.parametrize("key", [PLAIN, ODD])
def test_every_cut_of_twelve_characters_is_taken_out_wherever_it_stands(key: str) -> None:
    know(key)
    for length in range(CUT, len(key) + 1):
        for first in range(len(key) - length + 1):
            for before in range(length % 3, 10, 3):  # the text is looked at every ninth character
                text = "é " * before + " "[: before % 2]
                cut = key[first : first + length]
                assert without_keys(f"{text}{cut}") == f"{text}[key]", (first, length, before)
    for first in range(len(key) - CUT + 2):
        cut = key[first : first + CUT - 1]
        assert without_keys(f"({cut})") == f"({cut})", "a shorter one may be a word"


def test_a_key_that_is_escaped_letter_by_letter_is_taken_out_and_the_rest_stays_json() -> None:
    key = "sk-SECRET-aaaabbbbccccdddd0123"
    know(key)
    escaped = "".join(f"\\u{ord(letter):04x}" for letter in key)
    for written in (escaped, escaped.upper().replace("\\U", "\\u"), key[:6] + escaped[36:]):
        clean = json.loads(without_keys(f'{{"a": "{written} \\\\u0041 \\u00e9\\u0022"}}'))
        assert clean == {"a": '[key] \\u0041 é"'}
    assert without_keys('{"a": "\\u0041"}') == '{"a": "\\u0041"}'


def test_several_keys_and_several_cuts_in_one_text() -> None:
    other = PLAIN[::-1]
    know(PLAIN)
    know(other)
    assert without_keys(f"{PLAIN[:20]}…{PLAIN[-15:]}, {other}{PLAIN}") == f"{GONE}…{GONE}, {GONE}"


@pytest.mark.parametrize(
    "key",
    ["none", "EMPTY", "lm-studio", "x" * (LEAST - 1), "x" * 20, "sk-" + "x" * 40, "0123" * 10, "sk-no-key-required",
     "my-local-inference-server", "your_api_key_goes_here"],
)  # fmt: skip
def test_a_placeholder_stays(key: str) -> None:
    know(key)
    assert without_keys(f"it={key}") == f"it={key}"


LETTERS = string.ascii_letters + string.digits
DRAWN: dict[str, Callable[[random.Random], str]] = {
    "hex": lambda draw: f"{draw.getrandbits(128):032x}",
    "UUID": lambda draw: str(uuid.UUID(int=draw.getrandbits(128))),
    "base64": lambda draw: base64.b64encode(draw.randbytes(24)).decode(),
    "sk-": lambda draw: "sk-" + "".join(draw.choices(LETTERS, k=32)),
    "JWT": lambda draw: "eyJ" + ".".join("".join(draw.choices(LETTERS + "-_", k=40)) for _ in range(3)),
    "lower case": lambda draw: "sk-" + "".join(draw.choices(string.ascii_lowercase, k=24)),
    "16 letters": lambda draw: "".join(draw.choices(LETTERS, k=16)),
}


@pytest.mark.parametrize("kind", DRAWN)
def test_a_key_that_was_drawn_is_never_a_placeholder(kind: str) -> None:
    for seed in range(20):
        know(key := DRAWN[kind](random.Random(seed)))
        assert without_keys(f"it={key}.") == f"it={GONE}."


def test_a_key_is_read_stripped_and_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_LLM", f"\t{PLAIN}\r\n")
    assert read_key("MY_LLM") == PLAIN
    assert without_keys(repr(f"Bearer {PLAIN}\n")) == repr(f"Bearer {GONE}\n")


@pytest.mark.parametrize("letter", ["\n", " ", "\x00", "\x7f", "é", "ключ", "\ud800"])
def test_a_key_that_no_header_takes_is_refused_by_the_name_of_its_variable(letter: str) -> None:
    with pytest.raises(ModelError, match="MY_LLM") as error:
        checked(f"{PLAIN}{letter}{PLAIN}", "MY_LLM")
    assert PLAIN[:8] not in str(error.value) + repr(vars(error.value))


def test_the_environments_keys_are_known_and_its_other_variables_are_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "a-file-with-the-key.pem"
    file.touch()
    secret = {
        name: f"{name}-{PLAIN}" for name in ("OPENAI_API_KEY", "HF_TOKEN", "PGPASSWORD", "AWS_BEARER_TOKEN_BEDROCK")
    }
    plain = {"TOKENIZER": "meta-llama/Llama-3.1-8B", "SSH_KEY": str(file), "PASS_KEY": "correct horse battery staple"}
    for name, value in {**secret, **plain}.items():
        monkeypatch.setenv(name, value)
    know_environment()
    assert {without_keys(value) for value in secret.values()} == {"[key]"}
    assert all(without_keys(value) == value for value in plain.values())


def test_the_keys_in_a_callers_settings_are_known_at_any_depth() -> None:
    headers = {"Authorization": f"Bearer {PLAIN}", "X-Gate": PLAIN[::-1], "Content-Type": "application/json"}
    know_settings({"extra_headers": headers, "model": "openai/gpt-4.1-mini"})
    assert without_keys(f"{PLAIN} {PLAIN[::-1]}") == f"{GONE} {GONE}"
    assert without_keys(plain := f"{headers['Content-Type']}, openai/gpt-4.1-mini") == plain


# --- settings


SECRET_NAMES = [
    "api_key", "apikey", "key", "token", "access_token", "hf_token", "x-auth", "auth", "authorization", "oauth_token",
    "credential", "credentials", "cookie", "Set-Cookie", "password", "client_secret", "extra_headers", "jwt",
    "subscription-key",
]  # fmt: skip
PLAIN_NAMES = [
    "max_thinking_tokens", "budget_tokens", "stop_token_ids", "skip_special_tokens", "prompt_cache_key", "author",
    "logit_bias", "eos_token", "monkey_mode", "user",
]  # fmt: skip


@pytest.mark.parametrize("name", SECRET_NAMES)
def test_a_setting_named_like_a_secret_is_refused(name: str) -> None:
    for params in ({name: "abc"}, {"extra_body": [{name: "abc"}]}):
        told = refusal(ConfigError, loaded, params=params)
        assert "abc" not in told and "api_key_env" in told


@pytest.mark.parametrize("name", PLAIN_NAMES)
def test_a_setting_with_another_name_is_taken(name: str) -> None:
    assert loaded(params={name: 1}).params == {name: 1}


@pytest.mark.parametrize("variable", ["MY_LLM", "OTHER_API_KEY"])
def test_the_value_of_a_known_variable_is_refused_in_any_setting(
    said: Said, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, f"{ODD}\n")
    settings: list[dict[str, Any]] = [
        {"params": {"user": ODD}},
        {"params": {"extra_body": {"a": [f"Bearer {ODD}"]}}},
        {"model": f"sim/{ODD}"},
        {"api_base": f"http://localhost/{quote(ODD, safe='')}/v1"},
        {"api_base": f"http://localhost/{PLAIN}/v1"},  # which looks like a key, and is of no variable
    ]
    told = [refusal(ConfigError, loaded, **each, api_key_env="MY_LLM") for each in settings]
    assert not [line for line in told if ODD[-CUT:] in line or PLAIN[-CUT:] in line]
    said(told)


def loaded(**settings: Any) -> TeacherConfig:
    teacher = {"model": "sim/m", "api_base": "http://localhost/v1", **settings}
    config = load_config(RunConfig, environ={}, teacher=teacher).teacher
    assert isinstance(config, TeacherConfig)
    return config
