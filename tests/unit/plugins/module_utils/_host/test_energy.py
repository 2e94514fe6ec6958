# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Energy as kernels count it."""

from __future__ import annotations

from pathlib import Path

from ansible_collections.edgeml.fleet.plugins.module_utils._host.energy import EnergyMeter


def zone(root: Path, name: str, microjoules: int, size: int) -> Path:
    directory = root / "sys/class/powercap" / name
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "max_energy_range_uj").write_text(f"{size}\n")
    (directory / "energy_uj").write_text(f"{microjoules}\n")
    return directory


def test_packages_are_added_up_and_counters_begin_again(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", 1_000_000, 10_000_000)
    zone(tmp_path, "intel-rapl:0:0", 0, 10_000_000)  # a part of the package
    zone(tmp_path, "intel-rapl:1", 9_000_000, 10_000_000)
    meter = EnergyMeter(tmp_path)
    zone(tmp_path, "intel-rapl:0", 3_000_000, 10_000_000)
    zone(tmp_path, "intel-rapl:0:0", 5_000_000, 10_000_000)
    zone(tmp_path, "intel-rapl:1", 500_000, 10_000_000)
    assert meter.joules() == 3.5


def test_sensors_count_where_there_are_no_packages(tmp_path: Path) -> None:
    sensor = tmp_path / "sys/class/hwmon/hwmon2"
    sensor.mkdir(parents=True)
    (sensor / "energy1_input").write_text("100")
    meter = EnergyMeter(tmp_path)
    (sensor / "energy1_input").write_text("250100")
    assert meter.joules() == 0.25


def test_a_kernel_that_counts_nothing_or_does_not_tell(tmp_path: Path) -> None:
    assert EnergyMeter(tmp_path).joules() is None
    (zone(tmp_path, "intel-rapl:0", 5, 10) / "energy_uj").write_text("permission denied")
    assert EnergyMeter(tmp_path).joules() is None
