# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a file system cannot hold is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest
from ansible_collections.edgeml.fleet.plugins.module_utils._host.disk import largest_file

MOUNTS = """/dev/sda1 / ext4 rw 0 0
/dev/sdb1 /media/my\\040stick vfat rw 0 0
/dev/sdb2 /media/my\\040stick/large exfat rw 0 0
"""


@pytest.fixture
def mounts(tmp_path: Path) -> Path:
    (tmp_path / "mounts").write_text(MOUNTS)
    return tmp_path / "mounts"


def test_files_of_fat_end_early(mounts: Path) -> None:
    assert largest_file(Path("/media/my stick/bundle"), mounts) == (1 << 32) - 1


@pytest.mark.parametrize("place", ["/media/my stick/large/bundle", "/srv/bundle", "/media/my stick2"])
def test_others_do_not(mounts: Path, place: str) -> None:
    assert largest_file(Path(place), mounts) == 0
