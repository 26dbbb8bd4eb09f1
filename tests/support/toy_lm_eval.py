"""A stand-in for lm-eval's checker of IFEval, in an environment of its own. The real one runs in `make evaluate`."""

from __future__ import annotations

from pathlib import Path

from refed_dspy.plugins.evaluate.program import LM_EVAL
from tests.support.toy_environments import toy_environment

REGISTRY = """
INSTRUCTION_DICT = {"punctuation:no_comma": None, "length_constraints:number_words": None, "random:letter": None}
"""
CHECKER = """
import random

def follows(name, settings, text):
    if name == "random:letter":
        return random.random() < 0.5
    return "," not in text if name == "punctuation:no_comma" else len(text.split()) >= settings["num_words"]

def process_results(doc, responses):
    pairs = [*zip(doc["instruction_id_list"], doc["kwargs"])]
    strict = [follows(*pair, responses[0]) for pair in pairs]
    loose = [follows(*pair, responses[0].replace("*", "").replace(",", "")) for pair in pairs]
    return {"inst_level_strict_acc": strict, "inst_level_loose_acc": loose}
"""
LANGDETECT = "class DetectorFactory:\n    seed = None\n"
NLTK = """
import os
class data:
    def find(name):
        if not os.path.isdir(os.path.join(os.environ["NLTK_DATA"], name)):
            raise LookupError(name)
"""


def make_environment(folder: Path) -> Path:
    files = {"__init__.py": "", "tasks/__init__.py": "", "tasks/ifeval/__init__.py": ""}
    files |= {"tasks/ifeval/instructions_registry.py": REGISTRY, "tasks/ifeval/utils.py": CHECKER}
    named = {f"lm_eval/{name}": text for name, text in files.items()}
    return toy_environment(folder, LM_EVAL, {**named, "langdetect.py": LANGDETECT, "nltk.py": NLTK})


def make_models(folder: Path) -> Path:
    """A folder for NLTK_DATA with a sentence model that is empty."""
    (folder / "tokenizers" / "punkt_tab" / "english").mkdir(parents=True)
    return folder
