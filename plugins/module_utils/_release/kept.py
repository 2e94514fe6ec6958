# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a device reads back of what it has kept. A disk may have lost it, or kept something else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; {} if the file is lost, or holds anything else."""
    try:
        return parse_object(path.read_text())
    except (OSError, ValueError):
        return {}


def parse_object(text: str) -> dict[str, Any]:
    """Return the JSON object in a text; {} if it holds anything else."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
