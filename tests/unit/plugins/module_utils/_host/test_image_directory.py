# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where an engine's images are, whose disk must have room for more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ansible_collections.edgeml.fleet.plugins.module_utils._host import engine

CONTAINERD = [["driver-type", "io.containerd.snapshotter.v1"]]


@pytest.mark.parametrize(
    ("status", "is_there", "expected"),
    [
        ([["Backing Filesystem", "extfs"], ["Supports d_type", "true"]], True, "/var/lib/docker"),
        (None, True, "/var/lib/docker"),
        (CONTAINERD, True, "containerd"),
        (CONTAINERD, False, "/var/lib/docker"),  # a containerd that the engine started, below its own directory
    ],
)
def test_image_directory(
    status: Any, is_there: bool, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "containerd"
    monkeypatch.setattr(engine, "CONTAINERD_DIRECTORY", str(own))
    if is_there:
        own.mkdir()
    found = engine.image_directory({"DockerRootDir": "/var/lib/docker", "DriverStatus": status})
    assert found == (str(own) if expected == "containerd" else expected)
