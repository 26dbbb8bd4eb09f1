"""Criteria of a reference: which are dropped and why, and the two stages that a program has for them."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import dspy
import pytest

from refed_dspy.data.references import load_references
from refed_dspy.programs import ReferenceLevelFeedback, SampleLevelFeedback
from refed_dspy.programs.criteria import fault, usable
from refed_dspy.programs.load import load_program
from refed_dspy.programs.reference_level import METHODS, STAGES, extra_outputs
from refed_dspy.programs.saved import save_program
from refed_dspy.records import Reference, WeightedCriterion
from tests.support.scripted_engine import Writer, fake_lm

REFERENCE = Reference(
    instruction="Explain to a nurse in Leeds why 38.5 degrees counts as fever.",
    response="Fever helps the body to fight germs. Measure it twice, half an hour apart, before you worry.",
)
SENSIBLE = (
    "Does the answer explain why each step is needed before it goes on to the next?",
    "Does the answer give a concrete example for its main claim?",
    "Does the answer state its conclusion in the first paragraph?",
    "Does the answer warn the reader of a typical mistake and say how to avoid it?",
    "Does the answer define each technical term where it first occurs?",
    "Does the answer keep to the format and the limits that the instruction sets?",
    "Does the answer compare at least two alternatives and say when each is better?",
    "Does the answer say what it assumes and what remains uncertain?",
    "Does the answer end with something that the reader can do at once?",
    "Does the answer organize its points under headings or in a numbered list?",
    "Does the answer show code that can be run as it stands?",
    "Does the answer include a way to check that the result is correct?",
    "Does the answer use a friendly tone that suits a beginner?",
    "Does the answer support its claims with figures or sources?",
    "Does the answer address the needs that the instruction implies without stating?",
    "Does the answer handle edge cases and say what happens in them?",
    "Does the answer acknowledge arguments against its own position?",
    "Does the answer show the intermediate results of a calculation?",
    "Does the answer use a consistent voice throughout?",
    "Does the answer connect each piece of advice to the reader's situation?",
)
GENERAL = {"balance", "comparing", "contain", "correct", "difference", "evidence", "includes", "matters"}
"""Words that only one of the built-in references has, and that tell nothing of it."""
FRAMES = (
    "Does the answer explain clearly what {} means for the reader?",
    "Does the answer give a concrete example of {}?",
    "Does the answer say why {} is important?",
    "Does the answer mention {} in its conclusion?",
)


def planted(count: int) -> list[tuple[str, Reference]]:
    """Criteria with a name, a number, a rare word in some form, or a few words in a row of a built-in reference."""
    references = list(load_references("builtin"))
    texts = [f"{each.instruction}\n{each.response}" for each in references]
    seen = Counter(word for text in texts for word in {word.lower() for word in re.findall(r"[A-Za-z]+", text)})
    rng, made = random.Random(46), list[tuple[str, Reference]]()
    while len(made) < count:
        at = len(made) % len(references)
        names = re.findall(r"(?<=[a-z,] )[A-Z][a-z]{3,}", texts[at])
        numbers = re.findall(r"\d[\d.,]*\d", texts[at])
        rare = [word for word in re.findall(r"\b[a-z]{7,}\b", texts[at]) if seen[word] == 1 and word not in GENERAL]
        words = re.findall(r"[\w']+", texts[at].replace("\n", " "))
        start = rng.randrange(len(words) - 6)
        run = " ".join(words[start : start + rng.randint(4, 6)])
        kind = len(made) // len(references) % 4
        leak = rng.choice([names or numbers or [run], numbers or [run], rare, [run]][kind])
        leak = (
            leak.upper() if rng.random() < 0.2 else leak + "'s" * (leak.islower() and " " not in leak and at % 5 == 0)
        )
        made.append((rng.choice(FRAMES).format(leak), references[at]))
    return made


def test_no_planted_leak_is_let_through() -> None:
    through = [criterion for criterion, reference in planted(400) if not fault(criterion, reference)]
    assert through == []


def test_most_sensible_criteria_stay() -> None:
    references = list(load_references("builtin"))
    dropped = [(text, fault(text, each)) for each in references for text in SENSIBLE if fault(text, each)]
    assert len(dropped) <= 0.05 * len(references) * len(SENSIBLE), dropped
    assert all(sum(not fault(text, each) for text in SENSIBLE) >= 16 for each in references)


@pytest.mark.parametrize(
    ("criterion", "why"),
    [
        ("Does the answer say what a nurse would do?", "names its reference's nurse"),
        ("Does the answer suit nurses and other experts?", "names its reference's nurses"),
        ("Does the answer mention fevers?", "names its reference's fevers"),
        ("Does the answer say what worrying does?", "names its reference's worrying"),
        ("Does the answer show fitting germs?", "names its reference's germs"),
        ("Does the answer mention LEEDS?", "names its reference's leeds"),
        ("Does the answer say how measuring is done?", "names its reference's measuring"),
        ("Does the answer give 38 as a limit?", "names its reference's 38"),
        ("Does the answer say what to do before you know?", ""),
        ("Does the answer solve the reference instruction?", "speaks of its reference"),
        ("Does the answer name a reference where one is needed?", ""),
        ("Is the answer at least 200 words long?", "asks for length only"),
        ("Does the answer have more than three sentences?", "asks for length only"),
        ("Is the answer short and concise?", "asks for length only"),
        ("Is the answer detailed and does it cover edge cases?", ""),
    ],
)
def test_why_a_criterion_is_dropped(criterion: str, why: str) -> None:
    assert fault(criterion, REFERENCE) == why


@pytest.mark.parametrize(
    ("word", "form"),
    [
        ("sum", "summing"),
        ("plan", "planned"),
        ("bake", "bakers"),
        ("baker", "baking"),
        ("city", "cities"),
        ("ox", "OX's"),
        ("worry", "worried"),
    ],
)
def test_a_words_forms_are_the_word(word: str, form: str) -> None:
    reference = Reference(instruction=f"Tell me of a {word}.", response="Yes.")
    assert fault(f"Does the answer explain {form} in detail?", reference)


def test_a_run_of_common_words_is_a_leak_too() -> None:
    reference = Reference(instruction="Say what it is that you do.", response="Each of them is like the other.")
    assert fault("Does the answer say what it is about?", reference) == "repeats its reference: say what it is"


def weighted(text: str, weight: int = 3) -> WeightedCriterion:
    return WeightedCriterion(criterion=text, weight=weight)


def test_weights_are_clamped_copies_dropped_and_one_is_as_good_as_none() -> None:
    first, second = SENSIBLE[:2]
    made = usable([weighted(first, 99), weighted(f" {first.upper()}"), weighted(second, -1), weighted(" ")], REFERENCE)
    assert made == (weighted(first, 5), weighted(second, 1))
    assert usable([weighted(first), weighted("Does the answer mention fever?")], REFERENCE) == ()
    assert len(usable(map(weighted, SENSIBLE), REFERENCE)) == 8


# --- the stages


class Critic(Writer):
    """Writes two criteria that can be used, and one that leaks."""

    def _value(self, name: str) -> Any:
        if name == "criteria":
            texts = [*SENSIBLE[:2], "Does the answer mention fever?"]
            return [{"criterion": text, "weight": 4} for text in texts]
        return super()._value(name)


def test_a_program_without_them_asks_for_none() -> None:
    program = ReferenceLevelFeedback()
    assert program.stage_names == STAGES and not hasattr(program, "reference_criteria") and not program.criteria
    writer = Critic()
    with dspy.context(lm=fake_lm(writer)):
        assert program(REFERENCE).feedback.criteria == ()
    assert not any("criteria" in writer.fields(request) for request in writer.requests)


def test_two_calls_contrast_the_reference_with_a_plain_answer() -> None:
    program, writer = ReferenceLevelFeedback(criteria=True), Critic()
    with dspy.context(lm=fake_lm(writer)):
        made = program(REFERENCE)
    assert made.feedback.criteria == tuple(weighted(text, 4) for text in SENSIBLE[:2])
    plain = [
        request for request in writer.requests if "instruction" in str(request) and len(writer.fields(request)) == 1
    ]
    [contrast] = [request for request in writer.requests if writer.fields(request) == ["criteria"]]
    alone = next(request for request in plain if REFERENCE.response not in str(request))
    assert REFERENCE.instruction in str(alone)
    answered = re.search(r"<plain_response>\\n(response number \d+)", repr(contrast))
    assert answered is not None and REFERENCE.response in str(contrast)


@pytest.mark.parametrize("kind", [ReferenceLevelFeedback, SampleLevelFeedback])
def test_a_saved_program_keeps_its_stages(kind: type[ReferenceLevelFeedback], tmp_path: Path) -> None:
    program = kind(criteria=True, guidance={"reference_criteria": "Be strict."})
    save_program(program, tmp_path / "p.json")
    loaded = load_program(tmp_path / "p.json")
    assert type(loaded) is kind and loaded.criteria and loaded.stage_names == program.stage_names
    assert loaded.reference_criteria.signature.instructions.endswith("Be strict.")
    assert json.loads((tmp_path / "p.json").read_text())["reference_criteria"]


@pytest.mark.parametrize("name", METHODS)
def test_they_come_after_the_feedback_and_before_what_is_made(name: str) -> None:
    program = METHODS[name](criteria=True)
    program.add_criteria()  # a second time: nothing
    plain = [stage for stage in program.stage_names if stage not in {"plain_answer", "reference_criteria"}]
    assert tuple(plain) == METHODS[name].stage_names
    at = program.stage_names.index("plain_answer")
    assert program.stage_names[at + 1 : at + 3] == ("reference_criteria", "instruction_synthesis")
    assert {path for path, _ in program.named_predictors()} == set(program.stage_names)
    assert "reference_criteria" not in extra_outputs(program)
