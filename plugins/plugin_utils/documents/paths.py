# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where a path of an inventory leads: relative to the inventory, or into the collection wherever it is installed."""

from __future__ import annotations

import os
from pathlib import Path

#: What a path begins with that names a file of the collection, such as its own runtime's recipe.
OWN = "edgeml.fleet:"
COLLECTION = Path(__file__).parents[3]


def locate(directory: Path, text: str) -> Path:
    """Return the path that `text` means in an inventory whose relative paths begin at `directory`."""
    if text.startswith(OWN):
        return COLLECTION / text.removeprefix(OWN)
    return directory / text


def absolute(directory: Path, text: str) -> str:
    """Return `text` as an absolute path; a file of the collection stays named, for where the job runs."""
    return text if text.startswith(OWN) else os.path.normpath(directory / text)
