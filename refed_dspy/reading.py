"""Reading what people name: a path that is none, a file without an end, YAML that grows without one."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import yaml

from refed_dspy.errors import InputError

_MOST_CHARACTERS = 20_000_000
"""Characters that YAML may have once its aliases are written out."""


def path_of(value: str | Path, name: str) -> Path:
    """`value` as a path. Raises InputError where it is an empty text, which would be the working folder."""
    if value == "":
        raise InputError(f"{name}: is empty; is a shell variable unset?")
    return Path(value)


def read_bytes(path: Path) -> bytes:
    """What is in a file. Raises OSError; so do a pipe and a device, which might never end."""
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise OSError(f"{path} is a pipe or a device, not a file")
    return path.read_bytes()


def parse_yaml(text: str) -> Any:
    """What YAML `text` holds. Raises yaml.YAMLError, also for nesting and for aliases without end; ValueError for an
    impossible date."""
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if _written_out(node, {}) > _MOST_CHARACTERS:
            raise yaml.MarkedYAMLError(problem="its aliases stand for more than anybody could read")
        return None if node is None else loader.construct_document(node)
    except RecursionError:
        raise yaml.MarkedYAMLError(problem="nested without end") from None
    finally:
        loader.dispose()


def _written_out(node: Any, known: dict[int, int]) -> int:
    """The characters of `node` with its aliases written out. `known`: the same of nodes that were counted."""
    if not isinstance(node, yaml.CollectionNode):
        return 1 if node is None else 1 + len(node.value)
    if id(node) not in known:
        known[id(node)] = _MOST_CHARACTERS + 1  # for an alias of itself, inside of it
        inner = [part for item in node.value for part in (item if isinstance(item, tuple) else (item,))]
        known[id(node)] = 1 + sum(_written_out(part, known) for part in inner)
    return known[id(node)]
