# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Volumes are labelled where there is SELinux, and nowhere else."""

from __future__ import annotations

from pathlib import Path

import pytest
from ansible_collections.edgeml.fleet.plugins.module_utils._host.selinux import ENFORCE, mount, relabelled


@pytest.fixture
def enforcing(tmp_path: Path) -> Path:
    """A root as a kernel with SELinux shows it."""
    file = tmp_path / ENFORCE
    file.parent.mkdir(parents=True)
    file.write_text("1")
    return tmp_path


@pytest.mark.parametrize(
    ("volume", "labelled"),
    [
        ("/srv/mirror:/srv/mirror:ro", "/srv/mirror:/srv/mirror:ro,z"),
        ("/var/lib/edgeml/store:/var/lib/registry", "/var/lib/edgeml/store:/var/lib/registry:z"),
    ],
)
def test_a_volume_of_a_service(enforcing: Path, tmp_path: Path, volume: str, labelled: str) -> None:
    assert relabelled(volume, enforcing) == labelled
    assert relabelled(volume, tmp_path / "elsewhere") == volume


def test_a_mount_of_a_release(enforcing: Path, tmp_path: Path) -> None:
    source = Path("/var/lib/edgeml/models/a")
    assert mount(source, "/models/a", root=enforcing) == ["--volume", f"{source}:/models/a:ro,z"]
    assert mount(source, "/run/a", writable=True, root=enforcing) == ["--volume", f"{source}:/run/a:rw,z"]
    elsewhere = mount(source, "/models/a", root=tmp_path / "elsewhere")
    assert elsewhere == ["--mount", f"type=bind,source={source},target=/models/a,readonly"]
