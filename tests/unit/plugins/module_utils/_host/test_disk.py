# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a file system cannot hold is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest
from ansible_collections.edgeml.fleet.plugins.module_utils._host.disk import StorageError, check_file_size

MOUNTS = """/dev/sda1 / ext4 rw 0 0
/dev/sdb1 /media/my\\040stick vfat rw 0 0
/dev/sdb2 /media/my\\040stick/large exfat rw 0 0
"""


@pytest.fixture
def mounts(tmp_path: Path) -> Path:
    (tmp_path / "mounts").write_text(MOUNTS)
    return tmp_path / "mounts"


def test_a_file_that_fat_cannot_hold(mounts: Path) -> None:
    place = Path("/media/my stick/bundle")
    check_file_size(place, "models/large", (1 << 32) - 1, mounts)
    with pytest.raises(StorageError, match="cannot hold") as caught:
        check_file_size(place, "models/large", 1 << 32, mounts)
    assert (caught.value.where, caught.value.seen) == (str(place), "FAT, and models/large of 4294967296 bytes")
    assert "exFAT or ext4" in caught.value.remedy


@pytest.mark.parametrize("place", ["/media/my stick/large/bundle", "/srv/bundle", "/media/my stick2"])
def test_others_can(mounts: Path, place: str) -> None:
    check_file_size(Path(place), "models/large", 1 << 40, mounts)
