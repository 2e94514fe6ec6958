# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The energy that a host takes, where its kernel counts it."""

from __future__ import annotations

from pathlib import Path

MICRO = 1e-6


class EnergyMeter:
    """Counts joules from its making on: processor packages (RAPL), else the sensors of hwmon that count energy."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._counters = _counters(root)
        self._before = {path: _number(path) for path in self._counters}

    def joules(self) -> float | None:
        """Return the joules since the meter was made, None where the kernel counts none."""
        total = 0
        counted = False
        for path, size in self._counters.items():
            before, after = self._before[path], _number(path)
            if before is None or after is None:
                continue
            counted = True
            # A counter begins again at 0 when it is full.
            total += after - before if after >= before else after - before + size
        return total * MICRO if counted else None


def _counters(root: Path) -> dict[Path, int]:
    """Return the files that count microjoules, each with the number at which it begins again."""
    found = {}
    # A zone without a second number is a package, those below it are its parts.
    for path in sorted((root / "sys/class/powercap").glob("*-rapl:[0-9]*/energy_uj")):
        if path.parent.name.count(":") == 1:
            found[path] = _number(path.with_name("max_energy_range_uj")) or 0
    if found:
        return found
    return dict.fromkeys(sorted((root / "sys/class/hwmon").glob("hwmon*/energy[0-9]*_input")), 1 << 64)


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
