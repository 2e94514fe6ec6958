# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Text for people: tables, and tensors in one line."""

from collections.abc import Collection, Sequence

from edgeml_runtime.tensors import TensorSpec

_MOST_TENSORS = 4  # on a line


def described(specs: Collection[TensorSpec]) -> str:
    """Name, datatype and shape of tensors, "-" for none; of many, the first ones and how many there are."""
    shown = [f"{spec.name} {spec.datatype} {list(spec.shape)}" for spec in specs]
    if len(shown) > _MOST_TENSORS:
        shown = [*shown[: _MOST_TENSORS - 1], f"... {len(shown)} in all"]
    return ", ".join(shown) or "-"


def table(header: Sequence[str], rows: Sequence[Sequence[str]], indent: str = "") -> str:
    """Columns as wide as their widest cell, two spaces apart; the last one is not padded."""
    lines = [header, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header) - 1)]
    return "\n".join(
        indent + "  ".join((*(cell.ljust(width) for cell, width in zip(line, widths, strict=False)), line[-1])).rstrip()
        for line in lines
    )
