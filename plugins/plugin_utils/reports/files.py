# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reports that the controller writes to files."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from pathlib import Path

from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError


def write_reports(texts: Mapping[Path, str], variable: str) -> list[str]:
    """Write each text to its file, and return the paths; `variable` is the one that says where they go.

    Directories that are missing are made. Who reads a file meanwhile, such as node_exporter or Prometheus, sees the old
    text or the new one. Raise FleetError for what cannot be written.
    """
    for path, text in texts.items():
        try:
            if path.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            path.parent.mkdir(parents=True, exist_ok=True)
            new = path.with_name(f".{path.name}.new")
            new.write_text(text, encoding="utf-8", errors="backslashreplace")
            new.replace(path)
        except OSError as error:
            raise FleetError(
                "The report cannot be written",
                where=str(path),
                seen=error.strerror or str(error),
                remedy=f"set {variable} to a path that can be written on the controller",
            ) from error
    return [str(path) for path in texts]
