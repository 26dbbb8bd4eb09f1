"""A griffe extension that documents the keywords of `**settings: Unpack[RunSettings]` once, not twice.

Griffe's own extension (`unpack_typeddict`) shows the keywords in the signature and lists them again after the
docstring's own list. Here the docstring's entries get the keywords' types, and entries without a description are left
out.
"""

from __future__ import annotations

from typing import Any

import griffe


class Keywords(griffe.Extension):
    """Must run after `unpack_typeddict`."""

    def on_function(self, *, func: griffe.Function, **_: Any) -> None:
        if func.docstring and any(parameter.default == "..." for parameter in func.parameters):
            _merge_keywords(func.docstring)


def _merge_keywords(docstring: griffe.Docstring) -> None:
    for section in list(docstring.parsed):
        if section.kind is griffe.DocstringSectionKind.parameters:
            types = {entry.name: entry.annotation for entry in section.value if entry.annotation}
            section.value[:] = [entry for entry in section.value if entry.description]
            for entry in section.value:
                entry.annotation = entry.annotation or types.get(entry.name)
            if not section.value:
                docstring.parsed.remove(section)
