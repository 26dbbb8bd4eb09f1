"""For which teachers a prompt prefix in the cache saves something, so that one unit of a reference goes first."""

from __future__ import annotations

from pathlib import Path

import pytest

from refed_dspy.config.teacher import PriceConfig, TeacherConfig
from refed_dspy.teachers import open_teacher
from tests.support.scripted_engine import Writer, fake_lm

CHEAPER, PLAIN = PriceConfig(prompt=0.15, completion=0.6, cached=0.075), PriceConfig(prompt=0.15, completion=0.6)
LOCAL = {"model": "vllm/x", "api_base": "http://127.0.0.1:9/v1"}
OPENAI = {"model": "openai/gpt-4o-mini", "api_base": "http://127.0.0.1:9/v1"}


@pytest.mark.parametrize(
    ("settings", "characters", "helps"),
    [
        ({**LOCAL, "price": CHEAPER}, 100, True),
        ({**LOCAL, "price": PLAIN}, 10_000, False),
        (LOCAL, 10_000, False),  # the price is unknown
        ({**OPENAI, "price": CHEAPER}, 1_800, False),  # OpenAI caches nothing that short
        ({**OPENAI, "price": CHEAPER}, 5_000, True),
        ({**OPENAI, "price": CHEAPER, "model": "azure/x"}, 1_800, False),
        ({**OPENAI, "price": CHEAPER, "model": "azure/x"}, 5_000, True),
        ({**OPENAI, "price": CHEAPER, "mode": "batch"}, 5_000, False),  # a batch knows no cache
        ({**OPENAI, "price": CHEAPER, "model": "anthropic/x"}, 10**6, False),  # nothing is marked there
    ],
)
def test_it_helps_where_the_cache_makes_something_cheaper(
    settings: dict[str, object], characters: int, helps: bool
) -> None:
    assert open_teacher(TeacherConfig.model_validate(settings)).prompt_cache_helps(characters) is helps


def test_an_embedded_model_reads_a_warm_prefix_faster_though_all_of_it_is_free(tmp_path: Path) -> None:
    (tmp_path / "own.gguf").write_bytes(b"GGUF")
    assert open_teacher(TeacherConfig(gguf=tmp_path / "own.gguf")).prompt_cache_helps(1)


def test_nobody_knows_what_a_callers_own_lm_caches() -> None:
    assert not open_teacher(fake_lm(Writer(), name="openai/gpt-4o-mini")).prompt_cache_helps(10**6)
