"""What people say of the pairs that a judge judged: of the proof of a compile, of a comparison, of a filtering.

A proof leaves a file PAIRS in the compile's folder, a `JudgedPair` a line, which people can be asked about. Their
verdicts on some of the pairs correct the judge's on all (`measures.powered`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from refed_dspy.data.pairs import Pair, merged, texts_id
from refed_dspy.data.stored import read_json
from refed_dspy.data.verdicts import PosedPair
from refed_dspy.measures.intervals import Interval, mean_interval, share_interval
from refed_dspy.measures.powered import powered_mean

PAIRS = "pairs.jsonl"
"""The pairs of a proof, in a compile's folder."""
PEOPLE = "people.json"
"""What people's verdicts make of the judge's, in the folder of the judged pairs."""
COMPILED, UNCOMPILED = "compiled", "uncompiled"
"""The systems of these pairs."""


class JudgedPair(PosedPair):
    """Two answers, and what a judge said of them: its `preference` from 2 (A) to -2, None where it decided nothing.
    Pairs of one `cluster`, a reference or a topic, are alike."""

    preference: float | None = None
    cluster: str = ""

    @classmethod
    def of(
        cls,
        instruction: str,
        a: tuple[str, str],
        b: tuple[str, str],
        preference: float | None = None,
        cluster: str = "",
    ) -> JudgedPair:
        """`a`, `b`: the system that wrote each answer, and the answer."""
        return cls(
            id=texts_id(instruction, a[1], b[1]),
            instruction=instruction,
            system_a=a[0],
            answer_a=a[1],
            system_b=b[0],
            answer_b=b[1],
            preference=preference,
            cluster=cluster or instruction,
        )

    @property
    def win(self) -> float | None:
        """1 where the judge prefers A, 0.5 for a tie, 0 for B; None where it decided nothing."""
        return None if self.preference is None else ((self.preference > 0) - (self.preference < 0) + 1) / 2

    @property
    def open(self) -> bool:
        """Whether the answers differ, so that people can be asked."""
        return self.answer_a.strip() != self.answer_b.strip()


def proof_pairs(
    results: Iterable[tuple[Any, Any, Any]], topics: Mapping[str, str] | None = None
) -> Iterator[JudgedPair]:
    """The compiled program's answers beside the uncompiled one's that the metric judged in a proof, for PAIRS.

    `results`: those of the compiled program on the test set, (example, prediction, score), as `in_turns` returns them.
    `topics`: reference → its topic, where these are the proof's clusters. None but BeatsBaseline judges pairs.
    """
    for _, _, score in results:
        for pair in getattr(getattr(score, "evaluation", None), "pairs", ()):
            yield pair.model_copy(update={"cluster": (topics or {}).get(pair.cluster, pair.cluster)})


@dataclass(frozen=True)
class RateByPeople:
    """How often one system's answers are preferred to another's, from 0 to 1, a tie being half a win: by the judge, by
    people where they judged, and by both. Pairs of two equal answers are left out."""

    system: str
    over: str
    pairs: int
    by_people: int
    """How many of the `pairs` people judged."""
    judge: Interval | None
    """Over the pairs that it decided; None where it decided none."""
    people: Interval
    """All from 0 to 1 where people judged too few clusters."""
    powered: Interval | None
    """People's verdicts and the judge's together; None where people judged too few clusters, or the judge nothing."""
    weight: float | None
    """That of the judge in `powered`, from 0 to 1."""

    @property
    def gain(self) -> Interval | None:
        """`powered` over a tie: what `system` gains, in wins, over a program that ties with itself."""
        return self.powered and in_wins(self.powered)


def powered_rates(judged: Iterable[JudgedPair], people: Sequence[Pair], seed: int = 0) -> list[RateByPeople]:
    """The win rates of every two systems of which people judged a pair, as they first come.

    A pair is found among people's by its three texts, whichever answer is A there. What people judged by a criterion
    of its own does not count: the judge's verdicts are of overall quality. `seed`: of the intervals' resampling.
    """
    said: dict[str, float] = {}
    for pair in merged([each for each in people if not each.criterion]):
        said[texts_id(pair.instruction, pair.answer_b, pair.answer_a)] = -pair.verdict
        said[pair.texts_id] = pair.verdict
    groups: dict[tuple[str, str], list[tuple[JudgedPair, float | None]]] = {}
    for each in judged:
        if each.open:
            texts = (text.strip() for text in (each.instruction, each.answer_a, each.answer_b))
            groups.setdefault((each.system_a, each.system_b), []).append((each, said.get(texts_id(*texts))))
    rates = (_rate(*systems, group, seed) for systems, group in groups.items())
    return [rate for rate in rates if rate is not None]


def _rate(system: str, over: str, group: Sequence[tuple[JudgedPair, float | None]], seed: int) -> RateByPeople | None:
    """None where people judged none of the group."""
    wins, clusters = [pair.win for pair, _ in group], [pair.cluster for pair, _ in group]
    told = {place: verdict / 2 + 0.5 for place, (_, verdict) in enumerate(group) if verdict is not None}
    if not told:
        return None
    decided = {place: win for place, win in enumerate(wins) if win is not None}
    # where the judge decided nothing it is taken for a tie: any guess does, since people's verdicts correct it
    guessed = [decided.get(place, 0.5) for place in range(len(wins))]
    both = powered_mean(guessed, told, clusters) if decided else None
    return RateByPeople(
        system=system,
        over=over,
        pairs=len(group),
        by_people=len(told),
        judge=share_interval([*decided.values()], [clusters[at] for at in decided], seed=seed) if decided else None,
        people=_alone(told, clusters),
        powered=None if both is None else both.interval,
        weight=None if both is None else both.weight,
    )


def _alone(told: Mapping[int, float], clusters: Sequence[str]) -> Interval:
    """People's own rate: as with a judge's help where they judged everything."""
    values, names = [*told.values()], [clusters[place] for place in told]
    if (made := powered_mean(values, dict(enumerate(values)), names)) is not None:
        return made.interval
    mean = mean_interval(values, names)
    return replace(mean, low=0.0, high=1.0)


def told_by_people(folder: Path) -> str:
    """What people say of the gain in a compile's `folder`, in a line; empty where nobody was asked, or too few."""
    stored = read_json(folder / PEOPLE)
    for rate in stored.get("rates", ()):
        if rate["system"] == COMPILED and rate["powered"] is not None:
            gain = in_wins(Interval.of_stored(rate["powered"]))
            asked = f"people judged {rate['by_people']} of {rate['pairs']} pairs"
            return f"gain in wins, by people and the judge: {gain} (a tie is 0; {asked})"
    return ""


def in_wins(rate: Interval) -> Interval:
    """A win rate as what it gains over a program that ties with itself."""
    return replace(rate, mean=rate.mean - 0.5, low=rate.low - 0.5, high=rate.high - 0.5)
