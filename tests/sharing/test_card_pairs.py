"""What a card says of the pairs that its rows make."""

from __future__ import annotations

from pathlib import Path

from refed_dspy import synthesize
from refed_dspy.sharing.share import share
from tests.support.scripted_engine import Writer, fake_lm, references


def card(folder: Path, method: str) -> str:
    made = synthesize(
        None, references(1), size=3, teacher=fake_lm(Writer()), run_dir=folder / "run", method=method, track=False
    )
    share(made.run_dir, folder / "shared")
    return (folder / "shared" / "README.md").read_text()


def test_it_says_how_many_are_unjudged_and_how_much_longer_the_chosen_ones_are(tmp_path: Path) -> None:
    text = card(tmp_path, "reference-level")
    assert "Pairs to prefer, `improved_response` over `response`: 3 (3 unjudged; chosen 1.50 times as long" in text


def test_a_program_that_improves_nothing_makes_none(tmp_path: Path) -> None:
    assert "Pairs to prefer" not in card(tmp_path, "instruction-only")
