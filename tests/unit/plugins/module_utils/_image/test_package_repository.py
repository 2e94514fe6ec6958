# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A repository of packages on a disk that forgets, made by Debian's own tools of one small package."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from ansible_collections.edgeml.fleet.plugins.module_utils._image import package_repository
from ansible_collections.edgeml.fleet.plugins.module_utils._image.package_repository import export_packages
from ansible_collections.edgeml.fleet.runtime.tests.support.debian_packages import unpacked

CONTROL = (
    "Package: hello\nVersion: 1.0\nArchitecture: all\nMaintainer: nobody <nobody@example.com>\nDescription: hello\n"
)


def test_a_damaged_package_is_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the same size: only what is in it tells. What is whole is not written again."""
    monkeypatch.setenv("PATH", f"{unpacked('apt-utils', ['apt-utils'])}/usr/bin:{os.environ['PATH']}")
    (tmp_path / "hello/DEBIAN").mkdir(parents=True)
    (tmp_path / "hello/DEBIAN/control").write_text(CONTROL)
    package = tmp_path / "hello_1.0_all.deb"
    subprocess.run(["dpkg-deb", "--build", "--root-owner-group", tmp_path / "hello", package], check=True)

    def fetched(names: Sequence[str], suite: str, architecture: str, directory: Path) -> list[Path]:
        directory.mkdir()
        (directory / package.name).write_bytes(package.read_bytes())
        return [directory / package.name]

    monkeypatch.setattr(package_repository, "fetch_with_dependencies", fetched)

    def export(*, write: bool = True) -> bool:
        root, key = tmp_path / "packages", tmp_path / "packages.key"
        return export_packages(root, {"bookworm": ["hello"]}, ["amd64"], key, write=write)

    assert export()
    assert not export()
    written = tmp_path / "packages/bookworm/pool" / package.name
    written.write_bytes(package.read_bytes()[:-1] + b"!")
    assert export(write=False)
    assert export()
    assert written.read_bytes() == package.read_bytes()
    assert not export()
