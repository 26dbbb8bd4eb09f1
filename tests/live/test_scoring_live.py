"""The published sentence model, and the batched scorer against torch's own loss."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from refed_dspy.errors import ConfigError
from refed_dspy.measures.embedder import Embedder
from refed_dspy.plugins.metrics.figures import coherence, nearest_distance, semantic_diversity
from refed_dspy.plugins.metrics.perplexity import BATCH_TOKENS, GUESS, ScoredText, TransformersScorer, ifd
from refed_dspy.weights import MINILM, fetch

pytestmark = pytest.mark.live
ALPHABET = " abcdefghijklmnopqrstuvwxyz.,?\n"
XZ = len(ALPHABET) + 2


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    fetch(MINILM, print)
    return Embedder.open()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with random weights and a letter a token, saved as any model is."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    path = tmp_path_factory.mktemp("llama")
    save_tokenizer(path)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=XZ + 1, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=128, initializer_range=0.5, bos_token_id=1, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(path)
    return path


def save_tokenizer(path: Path, unk: str = "<unk>", bos: str = "<s>", in_front: str = "") -> None:
    """A letter a token, and xz is one. `in_front`: the tokens that it puts in front of a text."""
    import transformers
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors

    vocabulary = {unk: 0, bos: 1, "xz": XZ} | {letter: index + 2 for index, letter in enumerate(ALPHABET)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=unk))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("xz|."), "isolated")
    if in_front:
        special = [(token, vocabulary[token]) for token in in_front.split()]
        tokenizer.post_processor = processors.TemplateProcessing(single=f"{in_front} $A", special_tokens=special)
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=bos, unk_token=unk)
    fast.save_pretrained(path)


def loss(folder: Path, context: Sequence[int], text: Sequence[int]) -> float:
    """The model's own mean loss over the tokens `text` after `context`, as one sequence."""
    import torch
    import transformers

    model = transformers.LlamaForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        labels = torch.tensor([[-100] * len(context) + list(text)])
        return float(model(input_ids=torch.tensor([[*context, *text]]), labels=labels).loss)


def ids(text: str) -> list[int]:
    return [ALPHABET.index(letter) + 2 for letter in text]


def test_similar_texts_are_close(embedder: Embedder) -> None:
    texts = ["A man is eating food.", "Someone has a meal.", "The stock market fell sharply today."]
    vectors = embedder.embed([*texts, "Share prices dropped a lot this morning."])
    cosines = vectors @ vectors.T
    assert cosines[0, 1] > 0.5 and cosines[2, 3] > 0.5
    assert np.abs(cosines[:2, 2:]).max() < 0.2
    # As by transformers' BertModel on the same weights.
    pair = embedder.embed(["A man is eating food.", "A man is eating a piece of bread."])
    assert float(pair[0] @ pair[1]) == pytest.approx(0.7553, abs=2e-4)


def test_the_measures_over_the_model(embedder: Embedder) -> None:
    asked = ["How do I boil an egg?", "What is the capital of France?", "Write a poem about the sea."]
    answered = ["Put the egg in boiling water for nine minutes.", "Paris is.", "Waves of the sea, a poem of salt."]
    right = coherence(embedder, asked, answered)
    wrong = coherence(embedder, asked, [*answered[1:], answered[0]])
    assert min(value or 0 for value in right) > max(value or 0 for value in wrong)
    varied = embedder.embed([*asked, *answered])
    repeated = embedder.embed(asked[:1] * 6)
    assert (semantic_diversity(varied) or 0) > 0.5 > 1e-5 > (semantic_diversity(repeated) or 0)
    assert nearest_distance(repeated) == pytest.approx(0, abs=1e-5)


def test_batches_give_what_single_sequences_give(folder: Path) -> None:
    contexts = ["", "abc", "a long context, is it not?", "", "x\n", ""]
    texts = ["hello there.", "hello there.", "z", "", "what is this, and why is it so long?", "q"]
    contexts += [ALPHABET[:at] for at in range(40)]
    texts += ["what is this, and why is it so long? who can tell me that?"[at:] for at in range(40)]
    prompt_tokens = sum(len(context) + len(text) + 1 for context, text in zip(contexts, texts, strict=True))
    assert prompt_tokens > BATCH_TOKENS, "a batch takes no more"
    scores = TransformersScorer(str(folder)).nll(contexts, texts)
    for context, text, score in zip(contexts, texts, scores, strict=True):
        assert score is not None
        assert score.tokens == len(text)
        if text:
            assert score.mean == pytest.approx(loss(folder, [1, *ids(context)], ids(text)), rel=1e-4)
    assert scores[3] == ScoredText(0.0, 0)


def test_ifd_by_a_model(folder: Path) -> None:
    (first, blank) = ifd(TransformersScorer(str(folder)), [("name a sea.", "the north sea"), ("why?", "")], "none")
    asked, answered = ids("name a sea."), ids("the north sea")
    before = GUESS.replace("{response}", "the north sea") + "\n"
    guess = [ALPHABET.index(letter) + 2 if letter in ALPHABET else 0 for letter in before]
    guess = guess[len(asked) + 1 - 128 :]  # what the window has left
    alone = loss(folder, [1], answered)
    in_context = loss(folder, [1, *ids("name a sea.\n")], answered)
    assert first.ifd == pytest.approx(math.exp(in_context - alone), rel=1e-4)
    backward = loss(folder, [1, *guess], asked) - loss(folder, [1], asked)
    assert first.r_ifd == pytest.approx(math.exp(backward), rel=1e-4)
    assert first.ppl_answer_given_instruction == pytest.approx(math.exp(in_context), rel=1e-4)
    assert blank.ifd is blank.ppl_answer_given_instruction is None and blank.ppl_instruction is not None


def test_context_and_text_are_tokenised_as_one_text(folder: Path) -> None:
    """As in training: x and z in a row are a sequence that a model never saw where xz is a token."""
    after_x, after_y = TransformersScorer(str(folder)).nll(["ax", "ay"], ["zbc", "zbc"])
    assert after_x is not None and after_x.tokens == 2, "xz is one of the context's two tokens"
    assert after_x.mean == pytest.approx(loss(folder, [1, *ids("a"), XZ], ids("bc")), rel=1e-4)
    assert after_y is not None and after_y.tokens == 3
    assert after_y.mean == pytest.approx(loss(folder, [1, *ids("ay")], ids("zbc")), rel=1e-4)


def test_a_text_beyond_the_window_is_cut(folder: Path) -> None:
    scorer = TransformersScorer(str(folder))
    assert scorer.window == 128
    alone, in_context = scorer.nll(["", "b" * 500], ["ac" * 100] * 2)
    assert alone is not None and in_context is not None
    assert alone.tokens == in_context.tokens == 95
    assert alone.mean == pytest.approx(loss(folder, [1], ids("ac" * 100)[:95]), rel=1e-4)
    assert in_context.mean == pytest.approx(loss(folder, [1, *ids("b" * 32)], ids("ac" * 100)[:95]), rel=1e-4)


@pytest.mark.parametrize(
    ("unk", "bos", "in_front", "start"),
    [
        ("<unk>", "<s>", "", 1),
        ("<|endoftext|>", "<|im_start|>", "", 0),  # SmolLM2's, whose BOS opens a turn
        ("<|endoftext|>", "<s>", "<s>", 1),
        ("<unk>", "<s>", "<unk>", 0),
    ],
)
def test_a_text_starts_with_what_the_tokenizer_puts_there_or_what_separates_documents(
    folder: Path, tmp_path: Path, unk: str, bos: str, in_front: str, start: int
) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    save_tokenizer(tmp_path, unk, bos, in_front)
    (score,) = TransformersScorer(str(tmp_path)).nll([""], ["the sea"])
    assert score is not None and score.tokens == 7
    assert score.mean == pytest.approx(loss(folder, [start], ids("the sea")), rel=1e-4)


def test_what_cannot_be_loaded_is_one_line() -> None:
    pytest.importorskip("transformers")
    with pytest.raises(ConfigError, match="for scoring") as caught:
        TransformersScorer("/nowhere/at/all")
    assert "\n" not in str(caught.value)
