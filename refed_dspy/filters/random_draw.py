"""A filter that keeps rows at random: the control that other filters must beat."""

from __future__ import annotations

from hashlib import blake2b

from refed_dspy.filters.base import Decision, TextFilter
from refed_dspy.records import DataRow


class ByChance(TextFilter):
    """Keeps about `share` of all rows, drawn by `seed` and the row's text: the same rows whatever their order."""

    name = "random"
    of_instruction = True

    def __init__(self, share: float = 1.0, seed: int = 0) -> None:
        self.share, self.seed = share, seed

    def check(self, row: DataRow) -> Decision:
        """Dropped as "not drawn". The score is the number drawn, from 0 to 1."""
        text = f"{self.seed}\0{row.instruction}".encode("utf-8", "surrogatepass")
        drawn = int.from_bytes(blake2b(text, digest_size=8).digest()) / 2**64
        return Decision(drawn < self.share, "" if drawn < self.share else "not drawn", drawn)
