# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a host is: the facts by which placement chooses a variant of a model."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from ansible_collections.edgeml.fleet.plugins.module_utils._host.names import ARCHITECTURES

#: Names of accelerators and the device files by which their drivers show them.
ACCELERATORS = {
    "nvidia": ("dev/nvidia0", "dev/nvhost-gpu"),
    "coral": ("dev/apex_0",),
    "hailo": ("dev/hailo0",),
    "npu": ("dev/accel/accel0",),
}


def host_facts(root: Path = Path("/"), machine: str = "") -> dict[str, Any]:
    """Return architecture (OCI name), memory_mb (MiB), cpu_features and accelerator ("" if there is none).

    Tests give another `root` for /proc and /dev, and another machine name.
    """
    machine = machine or os.uname().machine
    memory = re.search(r"^MemTotal:\s+(\d+) kB", _text(root / "proc/meminfo"), re.M)
    features = re.search(r"^(?:flags|Features)\s*:(.*)$", _text(root / "proc/cpuinfo"), re.M)
    found = [name for name, paths in ACCELERATORS.items() if any((root / path).exists() for path in paths)]
    return {
        "architecture": ARCHITECTURES.get(machine, machine),
        "memory_mb": int(memory[1]) // 1024 if memory else 0,
        "cpu_features": sorted(set(features[1].split())) if features else [],
        "accelerator": found[0] if found else "",
    }


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
