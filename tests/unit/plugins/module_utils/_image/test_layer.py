# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Layers depend on content only, and unpacking follows the rules of container engines."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import tarfile
from pathlib import Path

import pytest
from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._image.layer import (
    PathPatterns,
    prune,
    resolve,
    unpack,
    write_layer,
)

LONG = "long/" + "n" * 120


def make_tree(root: Path, order: int) -> Path:
    """Make the same content, in another order and at another time."""
    root.mkdir()
    for name in ["b/two", "a", LONG, "b/öne"][::order]:
        path = root / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(name.encode())
        path.chmod(0o644)
        os.utime(path, (order + 10, order + 20))
    (root / "link").symlink_to("b/two")
    os.link(root / "a", root / "same")
    (root / "a").chmod(0o6755)
    for directory in (root / "b", root / "long"):
        directory.chmod(0o755)
    return root


def members(path: Path) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(path) as archive:
        return {entry.name: entry for entry in archive}


def test_equal_content_gives_equal_bytes(tmp_path: Path) -> None:
    first = write_layer(make_tree(tmp_path / "first", 1), tmp_path / "first.layer")
    second = write_layer(make_tree(tmp_path / "second", -1), tmp_path / "other name")
    assert first.path.read_bytes() == second.path.read_bytes()
    (tmp_path / "second" / "a").write_bytes(b"A")
    assert write_layer(tmp_path / "second", tmp_path / "third").digest != first.digest


def test_describes_the_bytes_on_disk(tmp_path: Path) -> None:
    layer = write_layer(make_tree(tmp_path / "tree", 1), tmp_path / "layer")
    data = layer.path.read_bytes()
    plain = gzip.decompress(data)
    assert layer.digest == "sha256:" + hashlib.sha256(data).hexdigest()
    assert layer.diff_id == "sha256:" + hashlib.sha256(plain).hexdigest()
    assert (layer.size, layer.uncompressed_size) == (len(data), len(plain))


def test_holds_nothing_of_this_machine(tmp_path: Path) -> None:
    entries = members(write_layer(make_tree(tmp_path / "tree", 1), tmp_path / "layer").path)
    assert list(entries) == ["a", "b", "b/two", "b/öne", "link", "long", LONG, "same"]
    assert {(e.uid, e.gid, e.uname, e.gname, e.mtime) for e in entries.values()} == {(0, 0, "", "", 0)}
    assert entries["a"].mode == 0o755, "set-user-ID and set-group-ID bits are dropped"
    assert entries["same"].islnk() and entries["same"].linkname == "a"
    assert entries["link"].issym() and entries["link"].linkname == "b/two"


def test_refuses_special_files(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    os.mkfifo(tmp_path / "tree" / "pipe")
    with pytest.raises(FleetError, match="pipe"):
        write_layer(tmp_path / "tree", tmp_path / "layer")


@pytest.mark.parametrize(
    ("pattern", "path", "matches"),
    [
        ("usr/bin/*", "usr/bin/sh", True),
        ("usr/bin/*", "usr/bin", False),
        ("usr/bin/*", "usr/bin/sub/file", True),
        ("usr/lib/*/gconv", "usr/lib/x86_64-linux-gnu/gconv/file.so", True),
        ("usr/lib/*/gconv", "usr/lib/a/b/gconv", False),
        ("usr/**/gconv", "usr/lib/a/b/gconv", True),
        ("tests", "numpy/lib/tests/test_io.py", True),
        ("tests", "numpy/latests/file", False),
        ("*.pyi", "numpy/__init__.pyi", True),
        ("*.pyi", "numpy/__init__.py", False),
        ("/etc/skel/", "etc/skel/.profile", True),
        ("a.c", "abc", False),
    ],
)
def test_patterns(pattern: str, path: str, matches: bool) -> None:
    assert PathPatterns([pattern]).match(path) is matches


def test_prune_keeps_what_it_is_told_and_removes_emptied_directories(tmp_path: Path) -> None:
    for name in [
        "usr/bin/python3",
        "usr/bin/sh",
        "usr/share/doc/a/copyright",
        "usr/share/doc/a/news",
        "usr/share/man/1/b",
    ]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "usr/bin/dangling").symlink_to("/nowhere")
    (tmp_path / "usr/src").mkdir()
    prune(
        tmp_path,
        PathPatterns(["usr/bin/*", "usr/share/doc/**", "usr/share/man"]),
        PathPatterns(["usr/bin/python3", "usr/share/doc/*/copyright"]),
    )
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")}
    assert left == {
        *("usr", "usr/bin", "usr/bin/python3", "usr/share", "usr/src"),
        *("usr/share/doc", "usr/share/doc/a", "usr/share/doc/a/copyright"),
    }


def archive(*entries: tuple[str, bytes | str | None, bytes]) -> tarfile.TarFile:
    """Return a tar of (name, content or link target, type)."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as writer:
        for name, content, kind in entries:
            entry = tarfile.TarInfo(name)
            entry.type = kind
            entry.mode = 0o755
            if isinstance(content, bytes):
                entry.size = len(content)
                writer.addfile(entry, io.BytesIO(content))
            else:
                entry.linkname = content or ""
                writer.addfile(entry)
    data.seek(0)
    return tarfile.open(fileobj=data, mode="r|")


FILE, DIRECTORY, SYMLINK, HARDLINK = tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE


def test_whiteouts_delete_what_lower_layers_brought(tmp_path: Path) -> None:
    unpack(archive(("a/one", b"1", FILE), ("a/two", b"2", FILE), ("c/old", b"3", FILE), ("d/x", b"4", FILE)), tmp_path)
    unpack(
        archive(
            ("a/.wh.one", b"", FILE),
            ("c/new", b"5", FILE),
            ("c/.wh..wh..opq", b"", FILE),
            (".wh.d", b"", FILE),
        ),
        tmp_path,
    )
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")) == ["a", "a/two", "c", "c/new"]


@pytest.mark.parametrize("name", [".wh.", ".wh..", ".wh..."])
def test_a_whiteout_that_names_no_file_deletes_nothing(tmp_path: Path, name: str) -> None:
    root = tmp_path / "root"
    unpack(archive(("a", b"1", FILE)), root)
    with pytest.raises(FleetError, match="A whiteout names no file"):
        unpack(archive((name, b"", FILE)), root)
    assert (root / "a").exists()


def test_later_entries_replace_earlier_ones(tmp_path: Path) -> None:
    unpack(archive(("a", b"1", FILE), ("b", "a", HARDLINK), ("d/x", b"", FILE), ("s", "a", SYMLINK)), tmp_path)
    assert (tmp_path / "a").stat().st_ino == (tmp_path / "b").stat().st_ino
    unpack(archive(("b", b"2", FILE), ("d", b"3", FILE), ("s", None, DIRECTORY)), tmp_path)
    assert [(tmp_path / name).read_bytes() for name in "abd"] == [b"1", b"2", b"3"]
    assert (tmp_path / "s").is_dir() and not (tmp_path / "s").is_symlink()


def test_directories_keep_a_merged_usr_link(tmp_path: Path) -> None:
    unpack(archive(("usr/lib", None, DIRECTORY), ("lib", "usr/lib", SYMLINK)), tmp_path)
    unpack(archive(("lib", None, DIRECTORY), ("lib/a", b"1", FILE)), tmp_path)
    assert (tmp_path / "lib").is_symlink()
    assert (tmp_path / "usr/lib/a").read_bytes() == b"1"


def test_nothing_is_written_outside(tmp_path: Path) -> None:
    root = tmp_path / "root"
    outside = tmp_path / "outside"
    root.mkdir()
    outside.mkdir()
    unpack(
        archive(
            ("../outside/dots", b"1", FILE),
            ("absolute", str(outside), SYMLINK),
            ("absolute/file", b"2", FILE),
            ("relative", "../../outside", SYMLINK),
            ("relative/file", b"3", FILE),
        ),
        root,
    )
    assert list(outside.iterdir()) == []
    assert (root / "outside/file").read_bytes() == b"3"
    assert resolve(root, "absolute/file").is_relative_to(root)


def test_link_loops_and_dangling_hard_links_are_errors(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(FleetError, match="symbolic links"):
        resolve(tmp_path, "a/file")
    with pytest.raises(FleetError, match="hard link"):
        unpack(archive(("x", "missing", HARDLINK)), tmp_path)
