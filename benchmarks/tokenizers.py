"""How the simulated server counts tokens: four characters to a token, or by a tiktoken encoding."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING

from benchmarks.wires import Chat
from refed_dspy.plugins.evaluate.answers.formats import encoding

if TYPE_CHECKING:
    import tiktoken

HEADS = 512  # cached encodings of texts before the last message


class Tokenizer:
    """Counts a token for every four characters."""

    def measure(self, chat: Chat) -> tuple[int, str | tuple[int, ...]]:
        """The tokens of a prompt, and what the prefix cache compares: its characters, or its tokens."""
        return len(chat.text) // 4, chat.text

    def count(self, text: str) -> int:
        return len(text) // 4

    def fitted(self, label: str, tokens: int, prose: Callable[[int], str]) -> str:
        """The label with prose after it, `tokens` tokens together; `prose` writes text of any number of tokens."""
        text = label + prose(tokens)
        end = max(4 * tokens + 1, len(label) + 1)
        return text if len(text) <= end else text[:end].rstrip() + "."

    def limit(self, text: str, most: int | None) -> tuple[str, int]:
        """The text cut to at most `most` tokens (None: not cut), and its token count."""
        if most is not None and len(text) > 4 * most:
            text = text[: 4 * most]
        return text, len(text) // 4


class Encoded(Tokenizer):
    """Counts by a tiktoken encoding; every message of a prompt is encoded on its own."""

    def __init__(self, encoding: tiktoken.Encoding) -> None:
        self.encoding = encoding
        # The text before the last message is the same for many requests.
        self.head = lru_cache(HEADS)(lambda text: tuple(encoding.encode_ordinary(text)))

    def measure(self, chat: Chat) -> tuple[int, str | tuple[int, ...]]:
        tokens: tuple[int, ...] = ()
        for text in chat.texts[:-1]:
            tokens += self.head(text)
        if chat.texts:
            tokens += tuple(self.encoding.encode_ordinary(chat.texts[-1]))
        return len(tokens), tokens

    def count(self, text: str) -> int:
        return len(self.encoding.encode_ordinary(text))

    def fitted(self, label: str, tokens: int, prose: Callable[[int], str]) -> str:
        # A word's token includes the space before it, so the counts of label and prose add up.
        return label + prose(max(1, tokens - self.count(label.rstrip())))

    def limit(self, text: str, most: int | None) -> tuple[str, int]:
        tokens = self.encoding.encode_ordinary(text)
        if most is None or len(tokens) <= most:
            return text, len(tokens)
        return self.encoding.decode(tokens[:most], errors="ignore"), most


def tokenizer(name: str) -> Tokenizer:
    """The tokenizer for a setting: "" or the name of an encoding."""
    return Encoded(encoding(name)) if name else Tokenizer()
