# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is planned so far of a publication, and what was found to be wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ansible_collections.edgeml.fleet.plugins.plugin_utils.documents.paths import locate
from ansible_collections.edgeml.fleet.plugins.plugin_utils.documents.problem import Path as Place
from ansible_collections.edgeml.fleet.plugins.plugin_utils.documents.problem import Problem


@dataclass
class Plan:
    """What is planned so far, and what was found to be wrong."""

    directory: Path
    build_directory: Path
    architectures: Sequence[str]
    registry: str
    store: str
    runtimes: Mapping[str, Mapping[str, Any]]
    minify_directory: str = ""
    problems: list[Problem] = field(default_factory=list)
    images: list[dict[str, Any]] = field(default_factory=list)
    sources: dict[str, dict[str, str]] = field(default_factory=dict)
    builds: list[dict[str, str]] = field(default_factory=list)
    artifacts: list[dict[str, Any]] = field(default_factory=list)

    def path(self, text: str, place: Place, *, directory: bool = False) -> Path:
        """Return the absolute path of an existing file or directory, or note that there is none."""
        path = locate(self.directory, text)
        if not (path.is_dir() if directory else path.is_file()):
            kind = "directory" if directory else "file"
            self.wrong(f"There is no such {kind}", place, str(path), f"correct the path; it begins at {self.directory}")
        return path

    def wrong(self, what: str, place: Place, seen: str, remedy: str) -> None:
        self.problems.append(Problem(what, place, seen, remedy))
