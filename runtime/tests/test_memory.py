# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""The bound on the server's own memory. What it does to a hungry model: test_onnx_options.py."""

import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from edgeml_runtime.memory import NEVER_TOUCHED_BYTES, available_bytes

MACHINE = 4 << 30


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("", {}, MACHINE),
        ("0::/\n", {"sys/fs/cgroup/memory.max": "max"}, MACHINE),
        ("0::/\n", {"sys/fs/cgroup/memory.max": "1000"}, 1000),
        (
            "0::/system.slice/edgeml.service\n",
            {
                "sys/fs/cgroup/system.slice/edgeml.service/memory.max": "max",
                "sys/fs/cgroup/system.slice/memory.max": "2000",
                "sys/fs/cgroup/memory.max": "3000",
            },
            2000,
        ),
        ("4:memory:/docker/1a2b\n0::/\n", {"sys/fs/cgroup/memory/memory.limit_in_bytes": "1000"}, 1000),
        (
            "9:cpu,memory:/a/b\n",
            {
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
                "sys/fs/cgroup/memory/a/b/memory.limit_in_bytes": "5000",
            },
            5000,
        ),
        ("3:cpuset:/a\n", {"sys/fs/cgroup/memory/a/memory.limit_in_bytes": "5"}, MACHINE),
    ],
    ids=["no_groups", "no_limit", "container", "service", "container_of_version_1", "group_of_version_1", "another"],
)
def test_available_bytes(tmp_path: Path, groups: str, files: dict[str, str], expected: int) -> None:
    for name, content in {
        "proc/meminfo": f"MemTotal:       {MACHINE >> 10} kB\nMemFree: 1 kB\n",
        "proc/self/cgroup": groups,
        **files,
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    assert available_bytes(tmp_path) == expected


def test_a_server_is_bounded(start_server: Any) -> None:
    server = start_server()
    server.wait_ready()
    limit, hard = resource.prlimit(server.process.pid, resource.RLIMIT_DATA)
    assert limit == available_bytes() + NEVER_TOUCHED_BYTES
    assert hard == resource.getrlimit(resource.RLIMIT_DATA)[1]


HOLDS_LARGE_BLOCKS = r"""
import re
from pathlib import Path
import numpy as np
from edgeml_runtime.memory import return_memory

def resident_mib():
    return int(re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024

{prepare}
np.ones(3 << 20, np.uint8)  # as if one request had needed it before
before = resident_mib()
blocks = [np.ones(3 << 20, np.uint8) for _ in range(30)]
kept = np.ones(2 << 20, np.uint8)
del blocks
print(resident_mib() - before)
"""


@pytest.mark.parametrize(("prepare", "goes_back"), [("return_memory()", True), ("", False)])
def test_large_blocks_go_back_whatever_was_needed_before(prepare: str, goes_back: bool) -> None:
    """Without it, the C library keeps 90 MiB for the sake of a block of 2 MiB that came later."""
    code = HOLDS_LARGE_BLOCKS.format(prepare=prepare)
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert (float(result.stdout) < 20) == goes_back
