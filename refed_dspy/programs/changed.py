"""Whether a program's file still holds the prompts that it was saved with: their digests, and what is different."""

from __future__ import annotations

import difflib
import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from refed_dspy.errors import ConfigError, one_line
from refed_dspy.programs.mlflow_address import is_address, registered_digest
from refed_dspy.records import digest

log = logging.getLogger("refed_dspy.optimizers")
DIFF = "prompts.diff"
"""What a compile writes beside its program: how its prompts differ from the uncompiled program's."""
_SHOWN = 400
"""Characters of a line that are shown."""


def prompt_digests(state: Any) -> dict[str, dict[str, str]]:
    """Predictor → part of its prompt (`_texts`) → digest, for a program's state. They depend on the state alone, so
    every version of this package finds the same."""
    return {
        name: {part: digest(text) for part, text in _texts(predictor).items()}
        for name, predictor in (state.items() if isinstance(state, dict) else ())
        if isinstance(predictor, dict) and isinstance(predictor.get("signature"), dict)
    }


def prompts_digest(state: Any) -> str:
    """Sixteen hex digits of all prompts in a program's state: what MLflow's registry has of a version."""
    return digest(prompt_digests(state))


def refuse_changed(state: Any, saved: object, fresh: Mapping[str, Any], source: str, accept: bool = False) -> None:
    """Raises ConfigError where `state`, read from `source`, holds other prompts than it was saved with, or than MLflow
    has registered. The error's note is the difference, as far as the old texts are known. With `accept` it warns.

    Args:
        saved: the `prompt_digests` that the file itself names; None: DSPy saved it, or an earlier version.
        fresh: the state of the program that it is loaded into, whose texts may be the old ones.
    """
    current, registered = prompt_digests(state), registered_digest(source)
    changed = [] if saved is None else list(_changed(saved, current))
    if not changed and registered in {None, digest(current)}:
        return
    named = ", ".join(f"{part} of {name}" for name, part, _ in changed) or "all of them by its own digests"
    not_registered = "; not what MLflow registered" if registered not in {None, digest(current)} else ""
    message = one_line(f"program {source}: its prompts were edited after it was saved: {named}{not_registered}")
    if accept:
        log.warning("%s; the proof of its gain no longer applies", message)
        return
    error = ConfigError(f"{message}; restore it or accept it with accept_changed=True")
    if shown := "\n".join(_difference(changed, state, fresh, _diff_beside(source))):
        error.add_note(shown)
    raise error


def refuse_changed_corrections(corrections: Any, saved: object, source: str, accept: bool = False) -> None:
    """Raises ConfigError where a trained judge's `corrections` are not those whose digest was `saved` with them; with
    `accept` it warns."""
    if saved == digest(corrections):
        return
    message = f"program {source}: its corrections were edited after it was saved"
    if not accept:
        raise ConfigError(f"{message}; restore it or accept it with accept_changed=True")
    log.warning("%s; how well it agrees with people is no longer known", message)


def _texts(predictor: Mapping[str, Any]) -> dict[str, str]:
    """The parts of a predictor's state as text, by their names for people."""
    signature, demos = predictor["signature"], predictor.get("demos")
    lines = {"fields": signature.get("fields"), "demonstrations": demos}
    return {
        "instructions": str(signature.get("instructions", "")),
        **{part: "\n".join(map(_as_line, each if isinstance(each, list) else [each])) for part, each in lines.items()},
    }


def _as_line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True)


def _changed(saved: Any, current: Mapping[str, Mapping[str, str]]) -> Iterator[tuple[str, str, Any]]:
    """Predictor, part and saved digest of what is not as it was saved."""
    for name, parts in current.items():
        before = saved.get(name) if isinstance(saved, dict) else None
        for part, value in parts.items():
            if (old := before.get(part) if isinstance(before, dict) else None) != value:
                yield name, part, old


def _difference(
    changed: Iterable[tuple[str, str, Any]], state: Any, fresh: Mapping[str, Any], compiled: Mapping[str, Sequence[str]]
) -> Iterator[str]:
    """Lines for people: the difference of each part whose old text is known: the fresh program's, or the compiled."""
    for name, part, old_digest in changed:
        if name not in fresh:
            continue
        plain, now = _texts(fresh[name])[part], _texts(state[name])[part]
        known = [plain, _patched(plain, compiled.get(name, ()))]
        if (old := next((text for text in known if digest(text) == old_digest), None)) is None:
            continue
        lines = difflib.unified_diff(old.split("\n"), now.split("\n"), f"{name}: {part} as saved", "now", lineterm="")
        yield from (line[0] + one_line(line[1:], _SHOWN) for line in lines)


def _diff_beside(source: str) -> dict[str, list[str]]:
    """Predictor → its lines in the file of differences beside the program's file; empty where there is none."""
    try:
        text = "" if is_address(source) else (Path(source).parent / DIFF).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return {}
    blocks = [block.split("\n") for block in re.split(r"^### ", text, flags=re.MULTILINE)[1:]]
    return {name: lines for name, *lines in blocks}


def _patched(text: str, difference: Iterable[str]) -> str:
    """`text` with a difference (of `prompt_diff`, which leaves out where its parts begin) applied. A wrong guess of
    where they do is no harm: the result's digest is compared."""
    old, new = text.split("\n"), list[str]()
    for line in difference:
        sign, words = line[:1], line[1:]
        if sign in {" ", "-"} and words in old:
            at = old.index(words)
            new += old[: at + (sign == " ")]
            old = old[at + 1 :]
        elif sign == "+" and not words.startswith(" demonstration: "):
            new.append(words)
    return "\n".join([*new, *old])
