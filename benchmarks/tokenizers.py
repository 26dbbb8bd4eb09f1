"""How the simulated server counts tokens: four characters to one, or with an encoding of tiktoken."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.wires import Chat

if TYPE_CHECKING:
    import tiktoken

HEADS = 512  # texts before the last message whose tokens are kept


class Tokenizer:
    """Counts a token for every four characters."""

    def measure(self, chat: Chat) -> tuple[int, str | tuple[int, ...]]:
        """The tokens of a prompt, and what the prefix cache compares: its characters, or its tokens."""
        return len(chat.text) // 4, chat.text

    def count(self, text: str) -> int:
        return len(text) // 4

    def fitted(self, label: str, tokens: int, prose: Callable[[int], str]) -> str:
        """The label and prose behind it, together of `tokens` tokens; `prose` writes any number of them."""
        text = label + prose(tokens)
        end = max(4 * tokens + 1, len(label) + 1)
        return text if len(text) <= end else text[:end].rstrip() + "."

    def limit(self, text: str, most: int | None) -> tuple[str, int]:
        """As much of a text as has at most `most` tokens (None: all of it), and the tokens of that."""
        if most is not None and len(text) > 4 * most:
            text = text[: 4 * most]
        return text, len(text) // 4


class Encoded(Tokenizer):
    """Counts with an encoding of tiktoken; every message of a prompt is encoded for itself."""

    def __init__(self, encoding: tiktoken.Encoding) -> None:
        self.encoding = encoding
        # What stands before the last message is mostly the same for many requests.
        self.head = lru_cache(HEADS)(lambda text: tuple(encoding.encode_ordinary(text)))

    def measure(self, chat: Chat) -> tuple[int, str | tuple[int, ...]]:
        found: tuple[int, ...] = ()
        for text in chat.texts[:-1]:
            found += self.head(text)
        if chat.texts:
            found += tuple(self.encoding.encode_ordinary(chat.texts[-1]))
        return len(found), found

    def count(self, text: str) -> int:
        return len(self.encoding.encode_ordinary(text))

    def fitted(self, label: str, tokens: int, prose: Callable[[int], str]) -> str:
        # Words take the space before them into their token, so that the counts of the parts add up.
        return label + prose(max(1, tokens - self.count(label.rstrip())))

    def limit(self, text: str, most: int | None) -> tuple[str, int]:
        found = self.encoding.encode_ordinary(text)
        if most is None or len(found) <= most:
            return text, len(found)
        return self.encoding.decode(found[:most], errors="ignore"), most


def encoding(name: str) -> tiktoken.Encoding:
    """An encoding from the files that LiteLLM ships, so that nothing is fetched; RuntimeError without LiteLLM."""
    import tiktoken

    found = importlib.util.find_spec("litellm")
    if found is None or found.origin is None:
        raise RuntimeError("no tokenizer file is there; install litellm, which ships it")
    before = os.environ.get("TIKTOKEN_CACHE_DIR")
    os.environ["TIKTOKEN_CACHE_DIR"] = str(Path(found.origin).parent / "litellm_core_utils" / "tokenizers")
    try:
        return tiktoken.get_encoding(name)
    finally:
        os.environ.pop("TIKTOKEN_CACHE_DIR")
        if before is not None:
            os.environ["TIKTOKEN_CACHE_DIR"] = before


def tokenizer(name: str) -> Tokenizer:
    """The tokenizer of a setting: "" or the name of an encoding."""
    return Encoded(encoding(name)) if name else Tokenizer()
