# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Memory of the process: what is free goes back, what would get the process killed fails as an allocation."""

import ctypes
import re
import resource
import sys
from contextlib import suppress
from mmap import MADV_DONTNEED, PAGESIZE, mmap
from pathlib import Path

#: The kernel counts addresses (RLIMIT_DATA): mostly stacks of threads, of which little is ever used.
NEVER_TOUCHED_BYTES = 128 << 20

#: Smaller blocks stay: the system's pages cost more than what the C library has at hand.
LARGE_BLOCK_BYTES = 512 << 10
#: What the C library keeps at hand for them: each request would otherwise get its pages from the system anew.
SPARE_BYTES = 4 << 20
#: Buffers of up to that size are used again and again.
KEPT_BUFFER_BYTES = 4 << 20
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h

_ROOT = Path("/")


def return_memory() -> None:
    """Have large blocks go back to the system as soon as they are free.

    Otherwise glibc raises the size from which on it does so to that of the largest block that was ever freed: what
    large requests needed once, the process would keep.
    """
    with suppress(AttributeError):  # another C library
        c_library = ctypes.CDLL(None)
        c_library.mallopt(_M_MMAP_THRESHOLD, LARGE_BLOCK_BYTES)
        c_library.mallopt(_M_TRIM_THRESHOLD, SPARE_BYTES)


def trim() -> None:
    """Give back to the system what the C library has at hand. Takes milliseconds: for when there is nothing to do."""
    with suppress(AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def forget(part: memoryview) -> None:
    """Give the pages of a part of a large buffer back to the system: nobody reads it any more.

    Smaller buffers are used again, and keep their pages.
    """
    memory = part.obj
    if not isinstance(memory, mmap) or len(memory) <= KEPT_BUFFER_BYTES:
        return
    offset = _address(part) - _address(memory)
    start = -(-offset // PAGESIZE) * PAGESIZE
    end = (offset + len(part)) // PAGESIZE * PAGESIZE
    if end > start:
        memory.madvise(MADV_DONTNEED, start, end - start)


def _address(memory: mmap | memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


def bound_memory() -> None:
    """Limit the data of this process to what its container or control group, or else the machine, has."""
    limit = available_bytes() + NEVER_TOUCHED_BYTES
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def available_bytes(root: Path = _ROOT) -> int:
    """The least of the machine's memory and the limits of the control groups (versions 1 and 2) of this process."""
    total = re.search(r"^MemTotal:\s+(\d+) kB$", (root / "proc/meminfo").read_text(), re.MULTILINE)
    sizes = [int(total[1]) * 1024] if total else []
    for line in (root / "proc/self/cgroup").read_text().splitlines():
        _, controllers, group = line.split(":", 2)
        if controllers == "":
            mount, name = root / "sys/fs/cgroup", "memory.max"
        elif "memory" in controllers.split(","):
            mount, name = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes"
        else:
            continue
        # In a container the group's own directory may be the mount itself.
        directory = mount / group.lstrip("/")
        for place in (directory, *directory.parents):
            if place.is_relative_to(mount) and (text := _content(place / name)).isdecimal():
                sizes.append(int(text))
    return min(sizes, default=sys.maxsize // 2)


def _content(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""
