"""The sentence model in numpy, against the same arithmetic one sentence at a time, on a tiny model made here."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from refed_dspy.errors import ConfigError
from refed_dspy.measures.embedder import Embedder
from refed_dspy.plugins.metrics.figures import NEIGHBOURS, coherence, nearest_distance, semantic_diversity
from refed_dspy.weights import MINILM, WEIGHTS
from tests.support.refusals import refusal
from tests.support.said import Said

WIDTH, WIDE, HEAD, LAYERS = 64, 128, 32, 2
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "cat", "dog", "##s", "eat", "blue", ",", "漢", "a", "b"]
TEXTS = [
    "the cat eats", "the dogs", "", "blue", "!!!", "漢字", "a b " * 400, "the\0cat\ndog", "x" * 20_000, "cat, dog",
]  # fmt: skip
Tensors = dict[str, NDArray[np.float32]]


def tensors() -> Tensors:
    rng = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (len(WORDS), WIDTH),
        "embeddings.position_embeddings.weight": (300, WIDTH),
        "embeddings.token_type_embeddings.weight": (2, WIDTH),
        "embeddings.LayerNorm.weight": (WIDTH,),
        "embeddings.LayerNorm.bias": (WIDTH,),
    }
    for layer in range(LAYERS):
        prefix = f"encoder.layer.{layer}"
        dense = {f"attention.self.{part}": (WIDTH, WIDTH) for part in ("query", "key", "value")}
        dense |= {"attention.output.dense": (WIDTH, WIDTH), "intermediate.dense": (WIDE, WIDTH)}
        dense |= {"output.dense": (WIDTH, WIDE)}
        for name, shape in dense.items():
            shapes |= {f"{prefix}.{name}.weight": shape, f"{prefix}.{name}.bias": shape[:1]}
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            shapes |= {f"{prefix}.{name}.weight": (WIDTH,), f"{prefix}.{name}.bias": (WIDTH,)}
    return {name: rng.normal(0.05, 0.4, shape).astype("f4") for name, shape in shapes.items()}


def tokenizer() -> bytes:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    made = Tokenizer(models.WordPiece({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    made.enable_padding(length=128)  # as in the published file: must be undone
    made.enable_truncation(128)
    return bytes(made.to_str(), "utf-8")


def packed(tensors: Mapping[str, NDArray[np.float32]], tail: bytes) -> bytes:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, tensor in {"embeddings.position_ids": np.zeros(3, "i8"), **tensors}.items():
        kind = "F32" if tensor.dtype == np.float32 else "I64"
        offsets = [len(data), len(data) + tensor.nbytes]
        header[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": offsets}
        data += tensor.tobytes()
    head = json.dumps(header).encode()
    return len(head).to_bytes(8, "little") + head + data + tail


@pytest.fixture(scope="module")
def weights() -> Tensors:
    return tensors()


@pytest.fixture(scope="module")
def embedder(weights: Tensors, tmp_path_factory: pytest.TempPathFactory) -> Embedder:
    path = tmp_path_factory.mktemp("embedder") / "tiny.safetensors"
    path.write_bytes(packed(weights, tokenizer()))
    return Embedder(path)


def plain(weights: Tensors, text: str) -> NDArray[np.float64]:
    """BERT on one sentence, in 64 bits, head by head, position by position."""
    from tokenizers import Tokenizer

    reader = Tokenizer.from_str(tokenizer().decode())
    reader.no_padding()
    reader.enable_truncation(256)
    ids = reader.encode(text).ids
    w = {name: tensor.astype(np.float64) for name, tensor in weights.items()}

    def norm(x: NDArray[np.float64], name: str) -> NDArray[np.float64]:
        scaled = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-12)
        return np.asarray(scaled * w[f"{name}.weight"] + w[f"{name}.bias"])

    def dense(x: NDArray[np.float64], name: str) -> NDArray[np.float64]:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    place = w["embeddings.position_embeddings.weight"][: len(ids)]
    x = norm(
        w["embeddings.word_embeddings.weight"][ids] + place + w["embeddings.token_type_embeddings.weight"][0],
        "embeddings.LayerNorm",
    )
    erf = np.vectorize(math.erf)
    for layer in range(LAYERS):
        name = f"encoder.layer.{layer}"
        q, k, v = (dense(x, f"{name}.attention.self.{part}") for part in ("query", "key", "value"))
        heads = []
        for at in range(0, WIDTH, HEAD):
            scores = np.exp(q[:, at : at + HEAD] @ k[:, at : at + HEAD].T / math.sqrt(HEAD))
            heads.append(scores / scores.sum(-1, keepdims=True) @ v[:, at : at + HEAD])
        attended = dense(np.concatenate(heads, axis=1), f"{name}.attention.output.dense")
        x = norm(x + attended, f"{name}.attention.output.LayerNorm")
        inner = dense(x, f"{name}.intermediate.dense")
        inner = inner * (1 + erf(inner / math.sqrt(2))) / 2
        x = norm(x + dense(inner, f"{name}.output.dense"), f"{name}.output.LayerNorm")
    pooled = x.mean(0)
    return np.asarray(pooled / np.linalg.norm(pooled))


def test_vectors_are_those_of_the_plain_arithmetic(embedder: Embedder, weights: Tensors) -> None:
    vectors = embedder.embed(TEXTS)
    assert vectors.shape == (len(TEXTS), WIDTH) and vectors.dtype == np.float32
    expected = np.array([plain(weights, text) for text in TEXTS])
    assert np.abs(vectors - expected).max() < 2e-5


@pytest.mark.slow
def test_a_vector_does_not_depend_on_its_neighbours(embedder: Embedder) -> None:
    together = embedder.embed(TEXTS * 12)
    alone = np.concatenate([embedder.embed([text]) for text in TEXTS])
    assert np.abs(together[-len(TEXTS) :] - alone).max() < 1e-5
    assert np.abs(np.linalg.norm(together, axis=1) - 1).max() < 1e-5


def test_coherence_is_the_cosine_of_each_pair(embedder: Embedder) -> None:
    asked, answered = ["the cat", "", "blue", "dog"], ["the cat", "dog", " \n", "eat a b"]
    cosines = coherence(embedder, asked, answered)
    assert cosines[0] == pytest.approx(1, abs=1e-5)
    assert cosines[1] is None and cosines[2] is None
    left, right = embedder.embed(["dog", "eat a b"])
    assert cosines[3] == pytest.approx(float(left @ right), abs=1e-5)
    assert coherence(embedder, [], []) == [] and embedder.embed([]).shape == (0, WIDTH)


def unit(rows: NDArray[np.float64]) -> NDArray[np.float32]:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), dtype=np.float32)


def test_diversity_is_the_mean_over_all_pairs() -> None:
    rng = np.random.default_rng(0)
    vectors = unit(rng.normal(rng.normal(0, 1, 8), 1, (37, 8)))
    distances = [[1 - float(one @ other) for j, other in enumerate(vectors) if i != j] for i, one in enumerate(vectors)]
    assert semantic_diversity(vectors) == pytest.approx(np.mean(distances), abs=1e-6)
    assert nearest_distance(vectors) == pytest.approx(np.mean([min(each) for each in distances]), abs=1e-6)
    assert semantic_diversity(vectors[:1]) is nearest_distance(vectors[:1]) is semantic_diversity(vectors[:0]) is None
    assert semantic_diversity(np.repeat(vectors[:1], 5, axis=0)) == pytest.approx(0, abs=1e-6)


def test_the_nearest_distance_of_a_sample_is_drawn_by_the_seed() -> None:
    vectors = unit(np.random.default_rng(0).normal(size=(5 * NEIGHBOURS, 16)))
    first, again, other = (nearest_distance(vectors, seed=seed) for seed in (1, 1, 2))
    assert first == again != other
    few = [nearest_distance(vectors[:count], seed=1) for count in (NEIGHBOURS // 2, NEIGHBOURS)]
    assert first is not None and few[1] is not None and few[0] is not None
    assert few[0] > first * 1.05, "among more rows the nearest is nearer"
    assert few[1] == pytest.approx(first, rel=0.02), "but no more are compared"


def test_the_embedder_says_how_to_fetch_it(said: Said, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REFED_CACHE", str(tmp_path))
    assert WEIGHTS["embedder"] is MINILM
    said(refusal(ConfigError, Embedder.open))
    with (tmp_path / MINILM.filename).open("wb") as file:
        file.truncate(MINILM.size)
    said(refusal(ConfigError, Embedder.open))


def test_a_damaged_file_is_told_in_one_line(said: Said, weights: Tensors, tmp_path: Path) -> None:
    whole = packed(weights, tokenizer())
    missing = {name: tensor for name, tensor in weights.items() if "layer.1.output.dense" not in name}
    path, damaged = (
        tmp_path / "damaged",
        {
            "empty": b"",
            "short": whole[: len(whole) // 2],
            "no tokenizer": packed(weights, b"{}"),
            "no layer": packed(missing, tokenizer()),
            "header": (10).to_bytes(8, "little") + b"{\xff\xff" + whole,
        },
    )
    for damage, content in damaged.items():
        path.write_bytes(content)
        said({damage: refusal(ConfigError, Embedder, path)})
