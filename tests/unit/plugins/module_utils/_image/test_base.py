# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A root file system is made of Debian packages and of nothing else."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._image.base import Package, fetch_packages, unpack_base
from ansible_collections.edgeml.fleet.plugins.module_utils._image.recipe import Base, User

BASE = Base(
    suite="trixie",
    packages=("small",),
    remove=("usr/bin/*", "usr/share/doc/**"),
    keep=("usr/bin/wanted", "usr/share/doc/*/copyright"),
    users=(User("root", 0, 0, "/root"), User("edgeml", 65532, 65532, "/nonexistent")),
    mirror="",
)
CONTROL = """Package: small
Version: 1:2.0-1
Architecture: all
Maintainer: Nobody <nobody@example.com>
Description: a package for a test
"""


@pytest.fixture
def package(tmp_path: Path) -> Package:
    source = tmp_path / "source"
    for name in ["bin/legacy", "usr/bin/wanted", "usr/bin/unwanted", "usr/share/doc/small/copyright", "DEBIAN/control"]:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(CONTROL)
    for directory in [source, *source.rglob("*/")]:
        directory.chmod(0o755)
    path = tmp_path / "small_1%3a2.0-1_all.deb"
    subprocess.run(["dpkg-deb", "--build", "--root-owner-group", source, path], check=True, capture_output=True)
    return Package(path, "small", "1:2.0-1")


def test_holds_what_the_recipe_says(package: Package, tmp_path: Path) -> None:
    root = tmp_path / "root"
    unpack_base(BASE, [package], root)
    files = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}
    assert {name for name in files if not name.startswith("etc/")} == {
        "usr/bin/wanted",
        "usr/share/doc/small/copyright",
        "var/lib/dpkg/status.d/small",
    }
    assert (root / "bin").readlink() == Path("usr/bin")
    assert "Version: 1:2.0-1" in (root / "var/lib/dpkg/status.d/small").read_text()


def test_users_can_be_looked_up(package: Package, tmp_path: Path) -> None:
    root = tmp_path / "root"
    unpack_base(BASE, [package], root)
    assert (root / "etc/passwd").read_text().splitlines() == [
        "root:x:0:0:root:/root:/usr/sbin/nologin",
        "edgeml:x:65532:65532:edgeml:/nonexistent:/usr/sbin/nologin",
    ]
    assert (root / "etc/group").read_text().splitlines() == ["root:x:0:", "edgeml:x:65532:"]
    assert "hosts: files dns" in (root / "etc/nsswitch.conf").read_text()


def test_a_damaged_package_is_named(package: Package, tmp_path: Path) -> None:
    package.path.write_bytes(package.path.read_bytes()[:200])
    with pytest.raises(FleetError, match="cannot be unpacked") as raised:
        unpack_base(BASE, [package], tmp_path / "root")
    assert raised.value.where == package.path.name


def test_a_missing_program_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FleetError, match="mmdebstrap") as raised:
        fetch_packages(BASE, "arm64", tmp_path / "packages")
    assert "apt-get install mmdebstrap" in raised.value.remedy
