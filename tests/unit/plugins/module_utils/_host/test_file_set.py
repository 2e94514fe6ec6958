# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Small files in one directory: written whole, with owner and mode, and only where they differ."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._host.file_set import FileSet

ME = os.getuid()


def secrets(directory: Path, **files: bytes) -> FileSet:
    return FileSet(directory, files, ME, 0o750, 0o400)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_directory_and_files_are_made_once(tmp_path: Path) -> None:
    wanted = secrets(tmp_path / "new" / "runtime", key=b"k", token=b"t")
    planned = wanted.apply(check_mode=True)
    assert (planned["changed"], planned["written"]) == (True, ["key", "token"])
    assert not (tmp_path / "new").exists()
    assert wanted.apply(check_mode=False) == planned
    assert mode(wanted.directory) == 0o750
    assert {path.name: (path.read_bytes(), mode(path)) for path in wanted.directory.iterdir()} == {
        "key": (b"k", 0o400),
        "token": (b"t", 0o400),
    }
    assert wanted.apply(check_mode=False) == {"changed": False, "written": [], "removed": [], "diff": {}}


def test_only_what_differs_is_written(tmp_path: Path) -> None:
    directory = tmp_path / "runtime"
    secrets(directory, content=b"old", mode=b"2", link=b"3", same=b"4").apply(check_mode=False)
    (directory / "others").write_text("stays")
    (directory / "mode").chmod(0o644)
    (directory / "link").rename(directory / "elsewhere")
    (directory / "link").symlink_to("elsewhere")
    kept = (directory / "same").stat().st_ino
    told = secrets(directory, content=b"secret", mode=b"2", link=b"3", same=b"4").apply(check_mode=False)
    assert told["written"] == ["content", "link", "mode"]
    assert "secret" not in str(told["diff"])
    assert (directory / "content").read_bytes() == b"secret"
    assert (directory / "same").stat().st_ino == kept
    assert not (directory / "link").is_symlink()
    assert mode(directory / "mode") == 0o400
    assert (directory / "others").read_text() == "stays"


def test_mode_of_the_directory_is_mended(tmp_path: Path) -> None:
    wanted = secrets(tmp_path / "runtime", key=b"k")
    wanted.apply(check_mode=False)
    wanted.directory.chmod(0o755)
    assert wanted.apply(check_mode=False) == {"changed": True, "written": [], "removed": [], "diff": {}}
    assert mode(wanted.directory) == 0o750


@pytest.mark.parametrize("name", ["../key", "a/b", "..", ""])
def test_names_that_lead_elsewhere_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(FleetError, match="Not the name of a file"):
        FileSet(tmp_path / "runtime", {name: b""}, ME, 0o750, 0o400).apply(check_mode=False)
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "runtime").write_text("somebody's")
    with pytest.raises(FleetError, match="where a directory has to be"):
        secrets(tmp_path / "runtime").apply(check_mode=False)
    assert (tmp_path / "runtime").read_text() == "somebody's"


def test_one_file_has_a_mode_of_its_own_and_another_goes(tmp_path: Path) -> None:
    directory = tmp_path / "registry"
    files = {"ca.crt": b"ca", "client.key": b"k"}
    wanted = FileSet(directory, files, ME, 0o755, 0o644, {"client.key": 0o600})
    wanted.apply(check_mode=False)
    assert {path.name: mode(path) for path in directory.iterdir()} == {"ca.crt": 0o644, "client.key": 0o600}
    assert not wanted.apply(check_mode=False)["changed"]
    (directory / "client.key").chmod(0o644)
    assert wanted.apply(check_mode=False)["written"] == ["client.key"]

    without = FileSet(directory, {"ca.crt": b"ca"}, ME, 0o755, 0o644, absent=["client.cert", "client.key"])
    planned = without.apply(check_mode=True)
    assert (planned["changed"], planned["removed"]) == (True, ["client.key"])
    assert (directory / "client.key").exists()
    assert without.apply(check_mode=False) == planned
    assert [path.name for path in directory.iterdir()] == ["ca.crt"]
    assert not without.apply(check_mode=False)["changed"]
    with pytest.raises(FleetError, match="Not the name of a file"):
        FileSet(directory, {}, ME, 0o755, 0o644, absent=["../ca.crt"]).apply(check_mode=False)
