# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A content in parts is what its numbered files hold, whatever else lies beside them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.names import sha256_digest
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.parts import (
    PartedFile,
    is_intact,
    open_whole,
    whole_size,
)


def content_of(path: Path) -> bytes:
    with open_whole(path) as file:
        return b"".join(iter(lambda: file.read(1 << 20), b""))


def write(directory: Path, data: bytes, part_bytes: int) -> None:
    with PartedFile(directory, part_bytes) as parts:
        parts.write(data)
        parts.sync()


@pytest.mark.parametrize("name", ["._0001", "._0002", ".DS_Store", "0002.new", "001", "00003", "³000", "0000"])
def test_what_others_put_beside_the_parts_is_no_part(tmp_path: Path, name: str) -> None:
    """macOS adds such a file to each that it copies to FAT32."""
    write(tmp_path, b"abcdefgh", 4)
    (tmp_path / name).write_bytes(b"junk")
    assert whole_size(tmp_path) == 8
    assert content_of(tmp_path) == b"abcdefgh"
    assert is_intact(tmp_path, sha256_digest(b"abcdefgh"), 8)
    write(tmp_path, b"ijkl", 4)
    assert content_of(tmp_path) == b"abcdefghijkl"


def test_parts_come_by_their_number(tmp_path: Path) -> None:
    data = os.urandom(20_001)
    for number in range(1, 10_002):
        (tmp_path / f"{number:04}").write_bytes(data[2 * number - 2 : 2 * number])
    assert whole_size(tmp_path) == len(data)
    for start in (1990, 19_980):
        with open_whole(tmp_path) as file:
            file.seek(start)
            assert b"".join(file.read(100) for _ in range(10)) == data[start : start + 20]
    with open_whole(tmp_path) as file:
        file.seek(19_990)
        assert b"".join(iter(lambda: file.read(100), b"")) == data[19_990:]


def test_reading_writes_nothing(tmp_path: Path) -> None:
    """Not where a part is missing either: what follows it is not taken for it."""
    write(tmp_path, b"abcdefghijkl", 4)
    (tmp_path / "0002").unlink()
    assert (whole_size(tmp_path), content_of(tmp_path)) == (4, b"abcd")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0001", "0003"]
    with open_whole(tmp_path) as file, pytest.raises(OSError, match="read"):
        file.write(b"more")
    # Continued, the rest is written anew, and nothing of what it was is left behind the end.
    write(tmp_path, b"mnop", 4)
    assert content_of(tmp_path) == b"abcdmnop"


def test_the_names_of_the_parts_are_on_the_disk_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = []
    fsync = os.fsync

    def record(descriptor: int) -> None:
        synced.append(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    write(tmp_path, b"abcdefgh", 4)
    assert synced == [(tmp_path / name).stat().st_ino for name in ("0001", "0002", "")]
