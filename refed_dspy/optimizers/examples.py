"""Examples and their split: the optimizer sees train and validation; nothing sees the test set before the proof."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import dspy
from pydantic import Field

from refed_dspy.config.base import Turns
from refed_dspy.config.keywords import Seed, checked
from refed_dspy.data.pairs import Pair, load_pairs, merged
from refed_dspy.data.read import BUILTIN
from refed_dspy.data.references import References, load_references
from refed_dspy.errors import ConfigError, briefly
from refed_dspy.measures.intervals import MIN_CLUSTERS
from refed_dspy.optimizers.agreement import criterion_of
from refed_dspy.programs import PairwiseJudge, SynthesisProgram
from refed_dspy.programs.synthesis import as_reference
from refed_dspy.records import Reference, digest
from refed_dspy.teachers import Teacher
from refed_dspy.text import counted

FEWEST_CLUSTERS = 3
Size: TypeAlias = Annotated[int, Field(ge=1)]


@dataclass(frozen=True)
class Split:
    """The three sets of examples."""

    train: tuple[dspy.Example, ...]
    validation: tuple[dspy.Example, ...]
    test: tuple[dspy.Example, ...]

    @property
    def sets(self) -> dict[str, tuple[dspy.Example, ...]]:
        """Name → set."""
        return {"train": self.train, "validation": self.validation, "test": self.test}

    def named_examples(self) -> Iterator[tuple[str, dspy.Example]]:
        """Every example, with the name of its set."""
        return ((name, example) for name, examples in self.sets.items() for example in examples)

    def subsets(self) -> Mapping[str, str]:
        """Example's id → the name of its set."""
        return {example_id(example): name for name, example in self.named_examples()}

    def clusters(self) -> Mapping[str, str]:
        """Example's id → its cluster."""
        return {example_id(example): cluster_of(example) for _, example in self.named_examples()}

    def seen(self) -> list[str]:
        """The clusters that the optimizer sees."""
        return sorted({cluster_of(example) for example in (*self.train, *self.validation)})


def example_id(example: dspy.Example) -> str:
    """Sixteen hex digits of an example's content."""
    return digest(example.toDict())


def cluster_of(example: dspy.Example) -> str:
    """The cluster of an example, whose scores are not independent: a digest of its instruction, or its reference's."""
    return instruction_of(example)[0]


def instruction_of(example: dspy.Example) -> tuple[str, str | None]:
    """The cluster of an example, and its instruction, or its reference's; None where it has none."""
    reference = example.get("reference")
    instruction = reference.instruction if isinstance(reference, Reference) else example.get("instruction")
    return (digest(instruction), instruction) if isinstance(instruction, str) else (example_id(example), None)


def unit_of(program: dspy.Module) -> str:
    """What the examples for `program` are clustered by, in the plural: references, instructions for a judge."""
    if isinstance(program, SynthesisProgram):
        return "references"
    return "instructions" if isinstance(program, PairwiseJudge) else "examples"


def as_examples(
    unit: str,
    source: Any,
    columns: Mapping[str, str] | None = None,
    turns: Turns = "leave_out",
    teacher: Teacher | None = None,
) -> list[dspy.Example]:
    """The examples that a program with this `unit` (`unit_of`) is tuned on, one for each item; equal ones are one.

    For "references" anything `load_references` takes, of which those that fit the context window of its `teacher`; for
    "instructions" pairs with people's verdicts (a file, or a list of `Pair`); else `dspy.Example`s with their inputs
    named.

    Raises:
        InputError: they cannot be read or used.
    """
    if unit == "references" and _holds_references(source):
        return distinct([reference_example(as_reference(example.reference)) for example in source])
    if unit == "references":
        loaded = source if isinstance(source, References) else load_references(source, columns, turns)
        fitting = loaded if teacher is None else loaded.fitting(teacher.window, teacher.max_tokens)
        return [reference_example(reference) for reference in fitting]
    if unit == "instructions":
        items = load_pairs(source) if isinstance(source, str | Path) else source
        if not isinstance(items, Sequence) or not items:
            raise ConfigError("pairs: a judge needs a file of pairs or a list of Pair")
        pairs = merged([item for item in items if isinstance(item, Pair)])
        others = [_judged(item) for item in items if not isinstance(item, Pair)]
        return distinct([*map(pair_example, pairs), *others])
    listed = isinstance(source, Sequence) and not isinstance(source, str | References)
    if not listed or not source or not all(isinstance(each, dspy.Example) and each._input_keys for each in source):
        raise ConfigError(
            "references: this program, which is no refed_dspy.programs.SynthesisProgram, needs a list of dspy.Example, "
            "each with_inputs(…)"
        )
    return distinct(source)


def _holds_references(source: Any) -> bool:
    """Whether these are examples in the shape that a metric gets them, each with its `reference`."""
    listed = isinstance(source, list | tuple) and bool(source)
    return listed and all(isinstance(each, dspy.Example) and "reference" in each for each in source)


class ReferenceExample(dspy.Example):
    """A reference that shows its texts whole: MIPROv2 tells its prompt model of the data by the examples' reprs."""

    def __repr__(self) -> str:
        texts = {name: value for name, value in dict(self.reference).items() if value and name != "source"}
        return f"Example({{'reference': {texts}}})"


def reference_example(reference: Reference) -> dspy.Example:
    return ReferenceExample(reference=reference).with_inputs("reference")


def pair_example(pair: Pair) -> dspy.Example:
    criterion = criterion_of(pair)
    fields = {"criterion": criterion.name, "description": criterion.description, "instruction": pair.instruction}
    fields |= {"answer_a": pair.answer_a, "answer_b": pair.answer_b}
    return dspy.Example(**fields, people=pair.verdict).with_inputs(*fields)


def distinct(examples: Sequence[dspy.Example]) -> list[dspy.Example]:
    """Each once, in their order."""
    return list({example_id(example): example for example in examples}.values())


def _judged(item: Any) -> dspy.Example:
    """An example with a pair's fields and people's verdict, its inputs named."""
    needed = {"instruction", "answer_a", "answer_b", "people"}
    if not isinstance(item, dspy.Example) or needed - set(item.keys()) or item.people not in (1, 0, -1):
        raise ConfigError(
            "pairs: a judge needs Pair objects, or dspy.Examples with instruction, answer_a, answer_b and "
            "people (1: A is preferred, 0: a tie, -1: B)"
        )
    return item if item._input_keys else item.with_inputs(*(set(item.keys()) - {"people"}))


@briefly
@checked
def split(
    references: Any = None, train: Size = 24, validation: Size = 12, test: Size = 16, seed: Seed = 0
) -> tuple[list[dspy.Example], list[dspy.Example], list[dspy.Example]]:
    """Three sets of examples for DSPy: to learn from, to choose by, and to prove a gain on (`prove`).

        train, val, test = refed_dspy.split("references.jsonl", 24, 12, 16, seed=0)

    No instruction is in two of them. Fewer than asked for are shared in proportion.

    Args:
        references: what `load_references` takes, None for `builtin`, or `dspy.Example`s with their inputs named.
        train, validation, test: at most so many references of each.

    Raises:
        InputError: they cannot be read, or are too few.
    """
    source = BUILTIN if references is None else references
    others = isinstance(source, list | tuple) and any(isinstance(each, dspy.Example) for each in source)
    items = as_examples("examples" if others and not _holds_references(source) else "references", source)
    sets = split_examples(items, (train, validation, test), seed)
    return list(sets.train), list(sets.validation), list(sets.test)


def split_examples(
    examples: Sequence[dspy.Example],
    sizes: Sequence[int],
    seed: int,
    held_out: Collection[str] = (),
    seen: Collection[str] = (),
) -> Split:
    """Train, validation and test sets of at most `sizes` clusters each, drawn with `seed`.

    With fewer clusters than `sizes` ask for, each set gets its share, and at least one. Examples by a criterion of
    `held_out` are in the test set alone, of which up to half are clusters with no other criterion. No cluster is in two
    sets, and none of `seen` (which the program was tuned on before) is in the test set, so the tuned program has seen
    none of the test set's texts.

    Raises:
        ConfigError: fewer than three clusters; a criterion that no example has, or only examples of `seen`; too few
            clusters that are not in `seen`.
    """
    held_out_criteria = _held_out_criteria(examples, held_out, seen)
    groups: dict[str, list[dspy.Example]] = {}
    for example in examples:
        groups.setdefault(cluster_of(example), []).append(example)
    rng = random.Random(f"split {seed}")
    names = sorted(
        name for name, group in groups.items() if not {_criterion(example) for example in group} <= held_out_criteria
    )
    only_held_out = sorted(set(groups) - set(names) - set(seen))
    _check_enough(len(examples), len(names), held_out_criteria)
    rng.shuffle(names)
    rng.shuffle(only_held_out)
    extra = min(len(only_held_out), sizes[2] // 2)
    counts = set_sizes(len(names), (*sizes[:2], sizes[2] - extra))
    # Clusters that the program was tuned on come first; the test set is taken from the end.
    names.sort(key=lambda name: name not in seen)
    names = [*names[: counts[0] + counts[1]], *names[len(names) - counts[2] :]]
    if any(name in seen for name in names[counts[0] + counts[1] :]):
        raise ConfigError(
            "examples: the program was already tuned on most of them, so too few are left to prove a gain; add others "
            "or lower test"
        )
    edges = [0, counts[0], counts[0] + counts[1], sum(counts)]
    sets = [[example for name in names[a:b] for example in groups[name]] for a, b in pairwise(edges)]
    train, validation = (
        tuple(example for example in subset if _criterion(example) not in held_out_criteria) for subset in sets[:2]
    )
    extra_examples = [example for name in only_held_out[:extra] for example in groups[name]]
    return Split(train, validation, (*sets[2], *extra_examples))


def own_split(unit: str, sets: Mapping[str, Any], prove: bool) -> Split:
    """The caller's own sets, by the names that DSPy gives them: `trainset`, `valset` and, for a proof, `testset`.

    Raises ConfigError where one is missing or unusable, or the test set shares an instruction with the others.
    """
    if missing := [name for name in ("trainset", "valset", *(["testset"] * prove)) if not sets.get(name)]:
        raise ConfigError(f"{missing[0]}: is missing; pass trainset, valset and testset together")
    made = {}
    for name in ("trainset", "valset", "testset"):
        try:
            made[name] = tuple(as_examples(unit, sets[name])) if sets.get(name) else ()
        except ConfigError as error:
            raise ConfigError(f"{name}: {str(error).removeprefix('references: ')}") from None
    split = Split(*made.values())
    if seen := {cluster_of(example) for example in split.test} & {*split.seen()}:
        raise ConfigError(
            f"testset: {counted(len(seen), 'instruction')} of it in trainset or valset; a proof needs others"
        )
    return split


def _held_out_criteria(examples: Sequence[dspy.Example], names: Collection[str], seen: Collection[str]) -> set[str]:
    """The held-out criteria, named as in the judge's prompt. Raises ConfigError for one that no example has, or only
    examples of clusters in `seen`, of which none may be in the test set."""
    held_out = {name.replace("_", " ") for name in names}
    criteria = {_criterion(example) for example in examples}
    if unknown := sorted(held_out - criteria):
        listed = ", ".join(sorted(criteria))
        raise ConfigError(f"held_out_criteria: no example is judged by {unknown[0]!r}; use one of {listed}")
    unseen = {_criterion(example) for example in examples if cluster_of(example) not in seen}
    if lacking := sorted(held_out - unseen):
        raise ConfigError(
            f"held_out_criteria: the program was already tuned on every instruction judged by {lacking[0]!r}; add "
            "others or do not hold it out"
        )
    return held_out


def _check_enough(examples: int, clusters: int, held_out: Collection[str]) -> None:
    """Raises ConfigError if there are too few `clusters` to tune on."""
    if held_out and not clusters:
        raise ConfigError("held_out_criteria: nothing is left to tune on; hold out fewer criteria")
    if clusters < FEWEST_CLUSTERS:
        raise ConfigError(
            f"examples: {examples} of them, with {clusters} references or instructions to tune on; a compile needs at "
            f"least {FEWEST_CLUSTERS} (train, validation, test), and {MIN_CLUSTERS} in the test set to prove anything"
        )


def _criterion(example: dspy.Example) -> str:
    """The criterion that an example is judged by, named as in the judge's prompt."""
    return str(example.get("criterion", "")).replace("_", " ")


def set_sizes(available: int, sizes: Sequence[int]) -> list[int]:
    """`sizes`, scaled down in proportion where `available` is less than their sum; each at least 1."""
    wanted = sum(sizes)
    if available >= wanted:
        return list(sizes)
    counts = [max(1, available * size // wanted) for size in sizes]
    while sum(counts) > available:
        counts[counts.index(max(counts))] -= 1
    while sum(counts) < available:  # what rounding left over goes to the set that lacks most
        missing = [size * available / wanted - count for size, count in zip(sizes, counts, strict=True)]
        counts[missing.index(max(missing))] += 1
    return counts
