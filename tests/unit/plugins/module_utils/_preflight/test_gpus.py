# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a host lacks that is to compute models with its GPUs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.edgeml.fleet.plugins.module_utils._preflight.gpus import gpus
from ansible_collections.edgeml.fleet.plugins.module_utils._preflight.host import Finding, Host, Requires, Wanted

ENGINE = {"ServerVersion": "28.3.0", "DockerRootDir": "/var/lib/docker"}
ALL = Wanted(engine_packages=[], requires=Requires(gpus=["all"]))
CDI = Wanted(engine_packages=[], requires=Requires(devices=["/dev/video0", "nvidia.com/gpu=0"]))
DRIVER = {"proc/driver/nvidia/version": "NVRM version: 570.86\n"}
SPECIFICATION = 'cdiVersion: 0.5.0\nkind: nvidia.com/gpu\ndevices:\n- name: "0"\n  containerEdits: {}\n- name: all\n'


class Machine(Host):
    """A host with these files, whose engine tells this of itself."""

    def __init__(self, root: Path, files: Mapping[str, str], **info: Any) -> None:
        super().__init__(self.answer, root, "x86_64", 64)
        self.info = {**ENGINE, **info}
        for name, text in files.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    def answer(self, arguments: list[str]) -> tuple[int, str, str]:
        return (0, json.dumps(self.info), "") if "info" in arguments else (1, "", "")

    def findings(self, wanted: Wanted) -> list[Finding]:
        return list(gpus(self, self.engine(), wanted))


def test_a_host_without_a_driver_and_a_toolkit(tmp_path: Path) -> None:
    driver, toolkit = Machine(tmp_path, {}).findings(ALL)
    assert (driver.name, driver.severity) == ("gpu_driver", "refuse")
    assert driver.value == "neither /proc/driver/nvidia/version nor /dev/nvidiactl nor /dev/nvhost-gpu is there"
    assert "nvidia-smi" in driver.remedy and "requires.gpus" in driver.remedy
    assert (toolkit.name, toolkit.severity) == ("gpu_toolkit", "refuse")
    assert "no runtime nvidia" in toolkit.value and "nvidia-ctk" in toolkit.value
    assert "install nvidia-container-toolkit" in toolkit.remedy


@pytest.mark.parametrize("driver", ["proc/driver/nvidia/version", "dev/nvidiactl", "dev/nvhost-gpu"])
@pytest.mark.parametrize(
    ("file", "info"),
    [
        ("", {"Runtimes": {"runc": {}, "nvidia": {}}}),
        ("usr/bin/nvidia-ctk", {}),
        ("usr/bin/nvidia-container-runtime-hook", {}),
        ("etc/cdi/nvidia.yaml", {}),
        ("var/run/cdi/nvidia.json", {}),
    ],
)
def test_a_host_with_both(tmp_path: Path, driver: str, file: str, info: Mapping[str, Any]) -> None:
    machine = Machine(tmp_path, {driver: "", **({file: "kind: nvidia.com/gpu\n"} if file else {})}, **info)
    assert machine.findings(ALL) == []


def test_a_gpu_that_is_not_there(tmp_path: Path) -> None:
    machine = Machine(
        tmp_path, {**DRIVER, "proc/driver/nvidia/gpus/0000:01:00.0/information": ""}, Runtimes={"nvidia": {}}
    )
    wanted = Wanted(engine_packages=[], requires=Requires(gpus=["0", "1", "GPU-6c5e"]))
    (finding,) = machine.findings(wanted)
    assert (finding.name, finding.severity, finding.value) == (
        "gpu",
        "refuse",
        "1 of requires.gpus; the host has 1 GPU",
    )
    assert finding.need == "0"


def test_a_name_of_cdi(tmp_path: Path) -> None:
    machine = Machine(tmp_path, {**DRIVER, "etc/cdi/nvidia.yaml": SPECIFICATION}, CDISpecDirs=["/etc/cdi"])
    assert machine.findings(CDI) == []
    wanted = Wanted(engine_packages=[], requires=Requires(devices=["nvidia.com/gpu=3", "vendor.com/npu=0"]))
    first, second = machine.findings(wanted)
    assert (first.name, first.value) == ("cdi", "nvidia.com/gpu=3 is in no file below /etc/cdi or /var/run/cdi")
    assert "nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml" in first.remedy
    assert "vendor.com/npu=0" in second.value and "nvidia-ctk" not in second.remedy


def test_a_specification_in_json(tmp_path: Path) -> None:
    text = json.dumps({"kind": "nvidia.com/gpu", "devices": [{"name": "0", "containerEdits": {}}]})
    assert Machine(tmp_path, {**DRIVER, "var/run/cdi/n.json": text}, CDISpecDirs=["/var/run/cdi"]).findings(CDI) == []


@pytest.mark.parametrize("info", [{}, {"CDISpecDirs": []}])
def test_an_engine_that_does_not_know_cdi(tmp_path: Path, info: Mapping[str, Any]) -> None:
    (finding,) = Machine(tmp_path, {**DRIVER, "etc/cdi/nvidia.yaml": SPECIFICATION}, **info).findings(CDI)
    assert (finding.name, finding.severity) == ("cdi", "refuse")
    assert "Docker Engine 28.3.0" in finding.value
    assert (
        "docker_engine_configuration: {features: {cdi: true}}" in finding.remedy and "requires.gpus" in finding.remedy
    )


def test_a_host_that_needs_no_gpu(tmp_path: Path) -> None:
    assert Machine(tmp_path, {}).findings(Wanted(engine_packages=[], requires=Requires(devices=["/dev/video0"]))) == []
