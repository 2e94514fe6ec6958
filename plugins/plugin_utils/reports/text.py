# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Words that reports share: what is safe for a terminal, sizes of lists, which site a host belongs to."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

#: What Ansible puts before the words of a filter or a module.
_FRAME = re.compile(
    r"^(Task failed: )?(Finalization of task args for '[^']*' failed: )?(Error while resolving value for '[^']*': )?"
    r"(The filter plugin '[^']*' failed: )?"
)


def printable(text: object) -> str:
    """Return one line that no answer of a host can turn into commands for a terminal."""
    return "".join(sign if sign.isprintable() else " " for sign in " ".join(str(text).split()))


def encodable(text: str) -> str:
    """Return a text that can be written as UTF-8: a byte that was none, as in an answer of SSH, is shown escaped."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def unframed(message: object) -> str:
    """Return the message of a module or filter without what Ansible puts before it."""
    return _FRAME.sub("", encodable(str(message)))


def site_of(variables: Mapping[str, Any]) -> str:
    """Return the site of a host: its variable edgeml_site, else its group site_NAME, else ""."""
    groups = sorted(variables.get("group_names", ()))
    named = next((group.removeprefix("site_") for group in groups if group.startswith("site_")), "")
    return str(variables.get("edgeml_site") or named)


def listed(names: Sequence[str], most: int) -> str:
    """Return the first names of a list, and how many others there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def aligned(rows: Sequence[Sequence[object]]) -> list[str]:
    """Return rows of equal length as lines with aligned columns."""
    cells = [[printable(cell) for cell in row] for row in rows]
    columns = range(len(cells[0]) - 1 if cells else 0)
    widths = [max(len(row[column]) for row in cells) for column in columns]
    return ["  ".join([*map(str.ljust, row, widths), row[-1]]).rstrip() for row in cells]
