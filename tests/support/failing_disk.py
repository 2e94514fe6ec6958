# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A disk (ext4 in a file) that fails, or loses its power, when a test says so."""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
import time
from pathlib import Path

#: Linux, include/uapi/linux/ext4.h: stop all writing at once. 2 is EXT4_GOING_FLAGS_NOLOGFLUSH, as in a power cut.
EXT4_IOC_SHUTDOWN, NO_LOG_FLUSH = 0x8004587D, 2
#: Seconds that other processes may go on having the disk.
HELD_SECONDS = 120.0


class FailingDisk:
    """The file system in the file `image`, which is to be seen at `directory`."""

    def __init__(self, image: Path, directory: Path) -> None:
        self.image = image
        self.directory = directory

    def make(self, size: int) -> None:
        """Make it anew, empty; it is not mounted."""
        self.directory.mkdir()
        with self.image.open("wb") as file:
            file.truncate(size)
        subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", self.image], check=True)

    def mount(self) -> None:
        """Mount it."""
        subprocess.run(["mount", "-o", "loop", self.image, self.directory], check=True)

    def fail(self) -> None:
        """Let nothing more be read from it or written to it. What was not on the disk is lost."""
        descriptor = os.open(self.directory, os.O_RDONLY)
        try:
            fcntl.ioctl(descriptor, EXT4_IOC_SHUTDOWN, struct.pack("I", NO_LOG_FLUSH))
        finally:
            os.close(descriptor)

    def unmount(self) -> None:
        """Take it off, as soon as nobody here uses it, and wait until it is gone.

        A process with mounts of its own (``unshare --mount``, an engine that starts a container) has copies of all
        that was mounted when it began. While it has one of a disk that has failed, the kernel gives whoever mounts the
        disk again the file system that has failed.
        """
        deadline = time.monotonic() + HELD_SECONDS
        while (done := subprocess.run(["umount", self.directory], capture_output=True, text=True)).returncode != 0:
            assert time.monotonic() < deadline, done.stderr
            time.sleep(0.02)
        while self._is_held():
            assert time.monotonic() < deadline, f"a process still has {self.image} in mounts of its own"
            time.sleep(0.02)

    def _is_held(self) -> bool:
        return bool(subprocess.run(["losetup", "--associated", self.image], stdout=subprocess.PIPE, check=True).stdout)
