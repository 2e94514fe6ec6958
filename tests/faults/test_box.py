# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The box itself: what has made a trial fail although nothing was wrong with the release."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from ansible_collections.edgeml.fleet.tests.faults.box import Box, own_network
from ansible_collections.edgeml.fleet.tests.support.failing_disk import FailingDisk

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def test_a_power_cut_ends_although_another_process_has_mounts_of_its_own(tmp_path: Path) -> None:
    """It happens in `make test`: a container that starts elsewhere has a copy of all mounts for a moment."""
    disk = FailingDisk(tmp_path / "disk.img", tmp_path / "disk")
    disk.make(16 << 20)
    disk.mount()
    other = subprocess.Popen(["unshare", "--mount", "sh", "-c", "echo; sleep 2"], stdout=subprocess.PIPE)
    assert other.stdout is not None
    other.stdout.readline()
    disk.fail()
    disk.unmount()
    disk.mount()
    try:
        (disk.directory / "written").touch()
    finally:
        disk.unmount()
        other.communicate()


def test_a_box_keeps_no_disk_of_others(tmp_path: Path) -> None:
    disk = FailingDisk(tmp_path / "disk.img", tmp_path / "disk")
    disk.make(16 << 20)
    disk.mount()
    (tmp_path / "box").mkdir()
    box = Box(tmp_path / "box")
    box.build()
    with own_network():
        box.power_on()
        try:
            disk.fail()
            disk.unmount()
            disk.mount()
            (disk.directory / "written").touch()
            (box.root.parent / "written").touch()
        finally:
            box.power_off()
            disk.unmount()
