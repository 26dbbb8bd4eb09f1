"""What a card says of the pairs that its rows make, and of their system prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from refed_dspy import synthesize
from refed_dspy.plugins.share.share import share
from tests.support.scripted_engine import Writer, fake_lm, references


def card(folder: Path, method: Any) -> str:
    made = synthesize(
        None, references(1), size=3, teacher=fake_lm(Writer()), run_dir=folder / "run", method=method, track=False
    )
    share(made.run_dir, folder / "shared")
    return (folder / "shared" / "README.md").read_text()


def test_it_says_how_many_are_unjudged_and_how_much_longer_the_chosen_ones_are(tmp_path: Path) -> None:
    text = card(tmp_path, "reference-level")
    assert (
        "Pairs to prefer, `improved_response` over `response`: 3 (3 unjudged; chosen 1.50 times as many characters"
        in text
    )


def test_a_program_that_improves_nothing_makes_none(tmp_path: Path) -> None:
    assert "Pairs to prefer" not in card(tmp_path, "instruction-only")


def test_it_says_that_rows_repeat_a_system_prompt(tmp_path: Path) -> None:
    under = [{**each, "system": "Be brief."} for each in references(1)]
    made = synthesize(None, under, size=1, teacher=fake_lm(Writer()), run_dir=tmp_path / "run", track=False)
    share(made.run_dir, tmp_path / "shared")
    text = (tmp_path / "shared" / "README.md").read_text()
    assert "except `system`: 1 reference has a system prompt, which the rows made from it repeat word for word" in text
    assert "except `system`" not in card(tmp_path / "plain", "reference-level")
