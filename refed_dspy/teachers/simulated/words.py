"""What the simulated teacher writes: instructions, responses, improvements and notes, put together from phrases.

Each text says that it is simulated. There are enough phrases that near-duplicate filters keep most of the rows.
"""

from __future__ import annotations

import random
import re

TOPICS = (
    "tide tables", "bicycle brakes", "sourdough starters", "a shared kitchen", "night trains", "a leaking roof",
    "school timetables", "bee hives", "small claims", "the price of bread", "home insurance", "garden soil",
    "a choir rehearsal", "street markets", "a broken heater", "museum tickets", "bird migration", "a village library",
    "chess openings", "winter tyres", "water bills", "a family recipe", "a museum audio guide", "map reading",
    "a first marathon", "power cuts", "second-hand cameras", "a wedding speech", "allergy labels", "a compost heap",
    "railway bridges", "house plants", "a rental contract", "a shift rota", "old photographs", "the history of salt",
    "a board game night", "river floods", "a science fair", "mountain huts", "spreadsheet errors", "a noisy neighbour",
    "public transport", "a lost parcel", "voice recordings", "a local election", "knitting patterns", "a job interview",
)  # fmt: skip
READERS = (
    "a new volunteer", "a busy parent", "a retired engineer", "a first-year student", "a shop owner", "a night nurse",
    "a school class", "a town council", "a tired manager", "a young cook", "a visiting friend", "a careful buyer",
    "a local reporter", "a team of four", "a sceptical uncle", "a sports club", "a landlord", "a beginner",
)  # fmt: skip
TASKS = (
    "Explain the basics of {topic} to {reader}", "Write a short guide to {topic} that {reader} can follow",
    "List what {reader} should check first about {topic}", "Compare two ways for {reader} to deal with {topic}",
    "Plan one week in which {reader} learns about {topic}", "Draft a letter from {reader} about {topic}",
    "Describe a typical mistake of {reader} in matters of {topic}", "Give {reader} five questions to ask about {topic}",
    "Settle an argument about {topic} on behalf of {reader}", "Teach {reader} the vocabulary of {topic}",
    "Estimate for {reader} the yearly cost of {topic}", "Make {topic} the subject of a lesson for {reader}",
    "Tell {reader} what has changed about {topic} lately", "Advise {reader} on {topic} from the very beginning",
)  # fmt: skip
SETTINGS = (
    "There is no money to spend.", "Half of the time has passed already.", "Nobody else can help.",
    "The last attempt failed for lack of notes.", "It has to be ready by Friday.", "Two people disagree about the aim.",
    "Only a phone is at hand.", "The weather may change the plan.", "An inspector will read it.",
    "Most advice on this is out of date.", "A child will listen in.", "The first meeting is tomorrow morning.",
    "Tools have to be borrowed.", "The room holds twenty.", "It will be read aloud.", "Mistakes would be expensive.",
)  # fmt: skip
LIMITS = (
    "Stay under 150 words.", "Begin with what matters most.", "Use no technical terms.", "Number the steps.",
    "End with one thing to do today.", "Mention at least one risk.", "Keep a friendly tone.",
    "Give a figure wherever you can.", "Leave out the history.", "Say what you are unsure of.", "Use short sentences.",
    "Add a table with three rows.", "Name one exception.", "Do not repeat the question.", "Suggest a cheaper way, too.",
)  # fmt: skip
CLAIMS = (
    "With {topic} the order of the steps decides most of it.", "Start with what can be seen without any tools.",
    "About {n} cases in a hundred need more than that.", "Write down what you find before you change anything.",
    "The usual estimate is {n} minutes, and it is too low.", "A second look after {n} days shows what was missed.",
    "Most trouble with {topic} comes from a step that was left out.", "Ask who is affected, and tell them early.",
    "Keep one thing the same while you change another.", "If two sources differ, take the newer one.",
    "A rough sketch is worth more than a long list here.", "What looks expensive at first often saves {n} hours later.",
    "Set a limit of {n} for the first attempt.", "Old habits are the hardest part of {topic}.",
    "Nothing has to be perfect in the first round.", "Put the result where others will find it.",
    "Leave some room for surprises, say {n} per cent.", "Check the small print; it changes every few years.",
    "One person should have the last word.", "Compare it with last year before you decide.",
    "Good light and a quiet hour help more than equipment.", "Try it on something that does not matter first.",
    "Stop when a further step would change nothing.", "The cheapest part fails first, so keep {n} spare ones.",
)  # fmt: skip
BETTER = (
    "For example, a group of {n} began with {topic} and was done in one afternoon.",
    "Because each step rests on the one before it, do not skip the second.",
    "1. Look at what is there. 2. Choose one change. 3. Check it after {n} days.",
    "In short: look first, change one thing, and check the result.",
    "One exception: where safety is at stake, ask an expert before you touch {topic}.",
    "To see whether it worked, count how often the problem comes back in {n} weeks.",
)  # fmt: skip
"""What an improvement adds, and the simulated judge looks for."""
NOTES = (
    "each step says why it comes where it does", "the reader learns early what the answer will be",
    "a concrete example would make the main point clearer", "the length fits what was asked",
    "the limits of the advice are named", "terms are explained where they first occur",
    "the tone suits the reader", "the last sentence says what to do next",
)  # fmt: skip
_TOPIC = re.compile("|".join(map(re.escape, TOPICS)))
_NUMBERED = {re.compile(re.escape(phrase.split("{")[0].strip())): phrase for phrase in BETTER}
NOISE = 0.8
"""Standard deviation of the simulated judge's error, in points of which each phrase of BETTER is worth one."""


def instruction(rng: random.Random) -> str:
    """A new instruction."""
    task = rng.choice(TASKS).format(topic=rng.choice(TOPICS), reader=rng.choice(READERS))
    return f"Simulated task {rng.randrange(10**6)}: {task}. {rng.choice(SETTINGS)} {rng.choice(LIMITS)}"


def response(rng: random.Random, asked: str) -> str:
    """A response to the instruction `asked`."""
    claims = rng.sample(CLAIMS, rng.randint(3, 6))
    added = rng.sample(BETTER, rng.choice((0, 0, 1)))
    return " ".join(["This answer is simulated.", *_filled(rng, [*claims, *added], _topic(asked))])


def improved(rng: random.Random, before: str, asked: str) -> str:
    """`before` with more of what the judge looks for, under a heading, and one sentence less if it has several."""
    sentences = re.split(r"(?<=[a-z][.!?]) ", before)
    if len(sentences) > 3:
        del sentences[rng.randrange(1, len(sentences) - 1)]
    lacking = [phrase for start, phrase in _NUMBERED.items() if not start.search(before)]
    added = _filled(rng, rng.sample(lacking, min(len(lacking), rng.randint(1, 3))), _topic(asked))
    return "\n\n".join([" ".join(sentences), *added])


def quality(rng: random.Random, text: str) -> float:
    """What the simulated judge thinks of `text`: a point for each phrase that an improvement adds, and noise."""
    return sum(start.search(text) is not None for start in _NUMBERED) + rng.gauss(0, NOISE)


def note(rng: random.Random, field: str) -> str:
    """A remark, for the field of this name."""
    return f"Simulated {field.replace('_', ' ')}: {rng.choice(NOTES)}."


def _topic(asked: str) -> str:
    found = _TOPIC.search(asked)
    return found.group() if found else "the matter"


def _filled(rng: random.Random, phrases: list[str], topic: str) -> list[str]:
    return [phrase.format(topic=topic, n=rng.randint(3, 40)) for phrase in phrases]
