"""The embedding model all-MiniLM-L6-v2 in numpy: sentences to vectors on this machine, without torch.

The model is BERT (Devlin et al., arXiv 1810.04805) with 6 layers of 12 heads; a sentence's vector is the mean over its
tokens, made unit length (Reimers and Gurevych, arXiv 1908.10084).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from refed_dspy.errors import ConfigError, one_line
from refed_dspy.weights import MINILM, find, verify

Vectors: TypeAlias = NDArray[np.float32]

MAX_TOKENS = 256
"""Tokens of a sentence, [CLS] and [SEP] included, that the model was made for. The rest of the text is left out."""
_HEAD_SIZE = 32
"""Numbers a head."""
_EPSILON = 1e-12
_BATCH_TOKENS = 2_048
"""Tokens that go through the model together: enough for efficient matrix products, few enough for the cache."""
_SLICE = 1 << 15
"""Numbers that stay in a core's cache while a formula goes over them."""
_READ = 1_000
"""Texts that the tokenizer holds at once."""


@dataclass(frozen=True, slots=True)
class _Dense:
    weight: Vectors
    """(in, out)."""
    bias: Vectors

    def __call__(self, x: Vectors) -> Vectors:
        # One product of two matrices: a product per row of the batch is fifty times slower.
        out: Vectors = x.reshape(-1, x.shape[-1]) @ self.weight
        out += self.bias
        return out.reshape(*x.shape[:-1], -1)


@dataclass(frozen=True, slots=True)
class _Norm:
    weight: Vectors
    bias: Vectors

    def __call__(self, x: Vectors) -> Vectors:
        x = x - x.mean(axis=-1, keepdims=True)
        x /= np.sqrt(np.einsum("...h,...h->...", x, x)[..., None] / x.shape[-1] + _EPSILON)
        x *= self.weight
        x += self.bias
        return x


@dataclass(frozen=True, slots=True)
class _Layer:
    qkv: _Dense
    """Query, key and value in one, (h, 3h)."""
    attention_output: _Dense
    attention_norm: _Norm
    intermediate: _Dense
    output: _Dense
    output_norm: _Norm

    def __call__(self, x: Vectors, mask: Vectors | None) -> Vectors:
        """(rows, tokens, h) to the same shape. `mask` is added to the attention scores: very negative for padding."""
        rows, tokens, size = x.shape
        by_head = self.qkv(x).reshape(rows, tokens, 3, size // _HEAD_SIZE, _HEAD_SIZE)
        query, key, value = by_head.transpose(2, 0, 3, 1, 4)
        scores = (query * np.float32(1 / math.sqrt(_HEAD_SIZE))) @ key.swapaxes(-1, -2)
        if mask is not None:
            scores += mask
        mixed = _softmax(scores) @ value
        x = self.attention_norm(x + self.attention_output(mixed.transpose(0, 2, 1, 3).reshape(rows, tokens, size)))
        return self.output_norm(x + self.output(_gelu(self.intermediate(x))))


class Embeds(Protocol):
    """A model that turns sentences into vectors."""

    def embed(self, texts: Sequence[str]) -> Vectors:
        """See `Embedder.embed`."""
        ...


class Embedder:
    """Sentences to vectors, in float32, on as many cores as numpy uses. Safe for several threads."""

    def __init__(self, path: Path) -> None:
        """`path`: a file in the safetensors format with the tokenizer's JSON behind its last tensor.

        Raises ConfigError, in one line, for any other file.
        """
        try:
            tensors, tail = _read(path)
            self._tokenizer = _tokenizer(tail)
            self._word_embeddings = tensors["embeddings.word_embeddings.weight"]
            positions = tensors["embeddings.position_embeddings.weight"]
            self._position_embeddings = positions + tensors["embeddings.token_type_embeddings.weight"][0]
            self._first_norm = _norm(tensors, "embeddings.LayerNorm")
            layers = {name.split(".")[2] for name in tensors if name.startswith("encoder.layer.")}
            self._layers = [_layer(tensors, f"encoder.layer.{number}") for number in range(len(layers))]
        except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
            raise ConfigError(
                f"cannot read the embedder in {one_line(path, 120)} ({one_line(error, 60)}): delete it and run "
                f"`refed teacher fetch {MINILM.name}`"
            ) from error

    @classmethod
    def open(cls) -> Embedder:
        """all-MiniLM-L6-v2 from the cache, its SHA-256 checked: about 0.5 s, 0.2 GB.

        Raises ConfigError, which names the command that fetches it, where it is missing or damaged.
        """
        path = find(MINILM)
        verify(path, MINILM)
        return cls(path)

    def embed(self, texts: Sequence[str]) -> Vectors:
        """A vector of unit length for each text, in order: (n, 384), float32.

        Only a text's first 256 tokens count. An empty text has a vector too, which means nothing. A vector does not
        depend on the other texts, except for rounding (about 1e-6).
        """
        vectors = np.zeros((len(texts), self._word_embeddings.shape[1]), dtype=np.float32)
        tokens = self._tokens(texts)
        for batch in batches([len(ids) for ids in tokens], _BATCH_TOKENS):
            vectors[batch] = self._forward([tokens[index] for index in batch])
        return vectors

    def _tokens(self, texts: Sequence[str]) -> list[NDArray[np.int32]]:
        # An encoding takes kilobytes: only its ids are kept.
        ids: list[NDArray[np.int32]] = []
        for start in range(0, len(texts), _READ):
            encoded = self._tokenizer.encode_batch(list(texts[start : start + _READ]))
            ids += [np.array(encoding.ids, dtype=np.int32) for encoding in encoded]
        return ids

    def _forward(self, tokens: Sequence[NDArray[np.int32]]) -> Vectors:
        longest = max(map(len, tokens))
        ids = np.zeros((len(tokens), longest), dtype=np.int32)
        present = np.zeros((len(tokens), longest), dtype=np.float32)
        for row, text_ids in enumerate(tokens):
            ids[row, : len(text_ids)] = text_ids
            present[row, : len(text_ids)] = 1
        mask = None if present.all() else (present[:, None, None, :] - 1) * np.float32(1e9)
        x = self._first_norm(self._word_embeddings[ids] + self._position_embeddings[:longest])
        for layer in self._layers:
            x = layer(x, mask)
        pooled: Vectors = np.einsum("nth,nt->nh", x, present) / present.sum(axis=1, keepdims=True)
        pooled /= np.maximum(np.linalg.norm(pooled, axis=1, keepdims=True), np.float32(_EPSILON))
        return pooled


def batches(sizes: Sequence[int], most_tokens: int) -> Iterator[list[int]]:
    """Indexes in batches of like length, so that little is padded; a padded batch has at most `most_tokens`."""
    batch: list[int] = []
    for index in np.argsort(sizes, kind="stable").tolist():
        if batch and (len(batch) + 1) * sizes[index] > most_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _softmax(scores: Vectors) -> Vectors:
    scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=-1, keepdims=True)
    return scores


def _gelu(x: Vectors) -> Vectors:
    """x Φ(x) in place, with the error function as BERT has it, by formula 7.1.26 of Abramowitz and Stegun (off by at
    most 1.5e-7; a sixth of the time of scipy's)."""
    flat = x.reshape(-1)
    for start in range(0, flat.size, _SLICE):
        piece = flat[start : start + _SLICE]
        size = np.abs(piece)
        t = 1 / (1 + size * np.float32(0.3275911 * math.sqrt(0.5)))
        beyond = t * np.float32(1.061405429)
        for coefficient in (-1.453152027, 1.421413741, -0.284496736, 0.254829592):
            beyond += np.float32(coefficient)
            beyond *= t
        beyond *= np.exp(size * size * np.float32(-0.5))  # erfc(|x| / √2), that is 2 (1 - Φ(|x|))
        beyond *= size
        piece[:] = np.maximum(piece, 0) - beyond * np.float32(0.5)
    return x


def _read(path: Path) -> tuple[dict[str, Vectors], bytes]:
    """The float32 tensors of a safetensors file (8 bytes of header length, a JSON header, raw data), and what follows
    them."""
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header: dict[str, Any] = json.loads(content[8:start])
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        if entry["dtype"] == "F32":
            raw = np.frombuffer(content, "<f4", count=(end - begin) // 4, offset=start + begin)
            tensors[name] = raw.reshape(entry["shape"])
    return tensors, content[start + max(entry["data_offsets"][1] for entry in header.values()) :]


def _tokenizer(content: bytes) -> Any:
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_str(content.decode("utf-8"))
    except Exception as error:  # the library raises nothing narrower
        raise ValueError("no tokenizer in it") from error
    tokenizer.no_padding()
    tokenizer.enable_truncation(MAX_TOKENS)
    return tokenizer


def _layer(tensors: Mapping[str, Vectors], name: str) -> _Layer:
    projections = [_dense(tensors, f"{name}.attention.self.{role}") for role in ("query", "key", "value")]
    weight = np.concatenate([dense.weight for dense in projections], axis=1)
    bias = np.concatenate([dense.bias for dense in projections])
    return _Layer(
        qkv=_Dense(weight, bias),
        attention_output=_dense(tensors, f"{name}.attention.output.dense"),
        attention_norm=_norm(tensors, f"{name}.attention.output.LayerNorm"),
        intermediate=_dense(tensors, f"{name}.intermediate.dense"),
        output=_dense(tensors, f"{name}.output.dense"),
        output_norm=_norm(tensors, f"{name}.output.LayerNorm"),
    )


def _dense(tensors: Mapping[str, Vectors], name: str) -> _Dense:
    # Stored as (out, in); transposed once here.
    return _Dense(np.ascontiguousarray(tensors[f"{name}.weight"].T), tensors[f"{name}.bias"])


def _norm(tensors: Mapping[str, Vectors], name: str) -> _Norm:
    return _Norm(tensors[f"{name}.weight"], tensors[f"{name}.bias"])
