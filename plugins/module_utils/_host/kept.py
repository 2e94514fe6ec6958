# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a device reads back of what it has kept. A disk may have lost it, or kept something else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; {} if the file is lost, or holds anything else."""
    try:
        return parse_object(path.read_text())
    except (OSError, ValueError):
        return {}


def read_or_set_aside(
    path: Path, is_whole: Callable[[dict[str, Any]], bool], warn: Callable[[str], object]
) -> dict[str, Any] | None:
    """Return the JSON object in a file, None if there is none.

    One that is not whole goes out of the way of what is written next, and stays beside it for a person to look at.
    """
    try:
        content = parse_object(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        content = {}
    if is_whole(content):
        return content
    set_aside(path, warn)
    return None


def set_aside(path: Path, warn: Callable[[str], object]) -> None:
    """Rename a damaged file, and `warn` of it."""
    aside = path.with_name(f"{path.name}.damaged")
    path.replace(aside)
    warn(f"{path} was damaged, by a power cut or by the disk; it is now {aside.name}, and the work goes on without it")


def parse_object(text: str) -> dict[str, Any]:
    """Return the JSON object in a text; {} if it holds anything else."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
