# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Debian packages on a stick: made by Debian's tools, verified by apt, taken over by a mirror."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._host.command import run_program
from ansible_collections.edgeml.fleet.plugins.module_utils._host.package_source import source_entry
from ansible_collections.edgeml.fleet.plugins.module_utils._image.package_repository import export_packages
from ansible_collections.edgeml.fleet.plugins.module_utils._mirror.package_import import import_packages
from ansible_collections.edgeml.fleet.runtime.tests.support.debian_packages import unpacked

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

SUITES = {"bookworm": ["hello"], "trixie": ["hello"]}
ARCHITECTURES = ("amd64", "arm64")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A bundle with a small package, for both suites and architectures, and the key beside it."""
    before = os.environ["PATH"]
    os.environ["PATH"] = f"{unpacked('apt-utils', ['apt-utils'])}/usr/bin:{before}"
    directory = tmp_path_factory.mktemp("stick")
    key_file = directory / "packages.key"
    assert export_packages(directory / "packages", SUITES, ARCHITECTURES, key_file, write=False)
    assert not list(directory.iterdir())
    assert export_packages(directory / "packages", SUITES, ARCHITECTURES, key_file, write=True)
    yield directory
    os.environ["PATH"] = before


@pytest.fixture
def stick(exported: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may damage."""
    shutil.copytree(exported, tmp_path / "stick")
    return tmp_path / "stick"


def key(stick: Path) -> str:
    return (stick / "packages.key.pub").read_text()


def take(stick: Path, root: Path, write: bool = True) -> bool:
    return import_packages(stick / "packages", root, key(stick), run_program, write=write)


def fetch(repository: Path, public_key: str, architecture: str, root: Path) -> list[str]:
    """Have apt fetch what a host without any package needs for the package; return the names of what it would
    install."""
    for name in ("lists/partial", "cache/archives/partial"):
        (root / name).mkdir(parents=True)
    (root / "edgeml.sources").write_text(source_entry(f"file:{repository}/", public_key))
    (root / "status").write_text("")
    options = [
        f"Dir::State::Status={root}/status", f"Dir::State::Lists={root}/lists", f"Dir::Cache={root}/cache",
        f"Dir::Etc::SourceList={root}/edgeml.sources", "Dir::Etc::SourceParts=/dev/null", "APT::Sandbox::User=root",
        f"APT::Architecture={architecture}", f"APT::Architectures={architecture}", "Acquire::Languages=none",
    ]  # fmt: skip
    apt = ["apt-get", "--yes", *(word for option in options for word in ("-o", option))]
    subprocess.run([*apt, "update"], check=True)
    subprocess.run([*apt, "--download-only", "--no-install-recommends", "install", "hello"], check=True)
    shown = subprocess.run([*apt, "--simulate", "install", "hello"], check=True, capture_output=True, text=True).stdout
    return [line.split()[1] for line in shown.splitlines() if line.startswith("Inst ")]


def test_the_secret_key_is_secret_and_nothing_changes_without_reason(exported: Path) -> None:
    key_file = exported / "packages.key"
    assert key_file.stat().st_mode & 0o777 == 0o600
    before = {path: path.stat().st_mtime_ns for path in exported.rglob("*") if path.is_file()}
    assert not export_packages(exported / "packages", {"bookworm": ["hello"]}, ARCHITECTURES, key_file, write=True)
    assert before == {path: path.stat().st_mtime_ns for path in exported.rglob("*") if path.is_file()}
    # FAT takes each name.
    assert not [path for path in before if any(character in path.name for character in ':%"*?<>|\\')]


@pytest.mark.parametrize("suite", SUITES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_bare_host_gets_all_from_the_mirror(stick: Path, tmp_path: Path, suite: str, architecture: str) -> None:
    mirror = tmp_path / "mirror"
    assert take(stick, mirror, write=False)
    assert not mirror.exists()
    assert take(stick, mirror)
    assert not take(stick, mirror)
    shutil.rmtree(stick / "packages")
    assert not take(stick, mirror)
    names = fetch(mirror / suite, key(stick), architecture, tmp_path / "apt")
    assert {"hello", "libc6", "libgcc-s1"} <= set(names)


def test_an_altered_package_is_refused(stick: Path, tmp_path: Path) -> None:
    path = next((stick / "packages/bookworm/pool").glob("hello_*_amd64.deb"))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(FleetError, match="not what its index says") as caught:
        take(stick, tmp_path / "mirror")
    assert caught.value.where == str(path)
    assert not (tmp_path / "mirror/bookworm/InRelease").exists()


@pytest.mark.parametrize("what", ["index", "signature", "key"])
def test_what_is_not_signed_by_the_key_is_refused(stick: Path, exported: Path, tmp_path: Path, what: str) -> None:
    mirror = tmp_path / "mirror"
    assert take(stick, mirror)
    before = {path: path.read_bytes() for path in mirror.rglob("*") if path.is_file()}
    place = stick / "packages/bookworm"
    if what == "index":
        (place / "Packages").write_bytes(
            (place / "Packages").read_bytes().replace(b"Package: hello", b"Package: hallo")
        )
    if what == "signature":
        (place / "InRelease").write_bytes((place / "InRelease").read_bytes().replace(b"bookworm", b"Bookworm"))
    if what == "key":
        other = tmp_path / "other.key"
        shutil.rmtree(stick / "packages")
        export_packages(stick / "packages", {"bookworm": ["hello"]}, ["amd64"], other, write=True)
    with pytest.raises(FleetError, match="apt does not trust the packages of the bundle"):
        take(stick, mirror)
    assert before == {path: path.read_bytes() for path in mirror.rglob("*") if path.is_file()}


def test_what_no_index_names_any_more_goes_last(stick: Path, tmp_path: Path) -> None:
    """A host that has read the index before still finds what it names; after the next bundle nobody needs it."""
    mirror = tmp_path / "mirror"
    take(stick, mirror)
    both = sorted(path.name for path in (mirror / "bookworm/pool").iterdir())
    key_file = stick / "packages.key"
    for suites in ({"bookworm": ["libc6"]}, {"bookworm": ["gcc-12-base"]}):
        export_packages(stick / "packages", suites, ["amd64"], key_file, write=True)
        assert take(stick, mirror)
    assert any(name.startswith("hello") for name in both)
    left = sorted(path.name.partition("_")[0] for path in (mirror / "bookworm/pool").iterdir())
    assert left == ["gcc-12-base", "libc6", "libgcc-s1"]
