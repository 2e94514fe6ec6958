# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""An engine and its configuration: what is merged, what is left out, and what is put back. systemd is a fake here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._host.distribution import distribution
from ansible_collections.edgeml.fleet.plugins.module_utils._host.engine_service import EngineService

OURS = {"live-restore": True, "log-driver": "local", "log-opts": {"max-file": "3"}}


class Machine:
    """A host with systemd and an engine that does not start with the keys in `hates`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.running = True
        self.hates: set[str] = set()
        self.swarm = "inactive"
        self.version = "Docker version 20.10.24"
        self.help = ""
        self.starts = 0
        for directory in ("run/systemd/system", "usr/sbin"):
            (root / directory).mkdir(parents=True)
        (root / "usr/sbin/dockerd").write_text("")

    def run(self, arguments: list[str], /) -> tuple[int, str, str]:
        words = arguments[2:] if arguments[0] == "timeout" else arguments
        if words[:2] == ["docker", "--version"]:
            return (127, "", "") if not self.version else (0, self.version, "")
        if words[:2] == ["docker", "version"]:
            return (0 if self.running else 1), "", ""
        if words[:2] == ["docker", "info"]:
            return 0, self.swarm + "\n", ""
        if words[:2] == ["systemctl", "restart"]:
            self.starts += 1
            self.running = not self.hates & self.configuration().keys()
            return (0 if self.running else 1), "", ""
        if words[0] == "journalctl":
            return 0, "unknown log opt\n", ""
        if words == ["dockerd", "--help"]:
            return 0, self.help, ""
        if words[:2] == ["dockerd", "--validate"]:
            read = json.loads(Path(words[2].partition("=")[2]).read_text())
            return (1, "", "it is invalid") if self.hates & read.keys() else (0, "", "")
        return 0, "", ""

    def configuration(self) -> dict[str, Any]:
        path = self.root / "etc/docker/daemon.json"
        return dict(json.loads(path.read_text())) if path.exists() else {}

    def apply(self, configuration: dict[str, Any], check_mode: bool = False) -> dict[str, Any]:
        return EngineService(self.run, self.root).apply(configuration, 0.0, check_mode)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_an_engine_is_configured_once(machine: Machine) -> None:
    assert machine.apply(OURS, check_mode=True)["plan"] == {"action": "restart"}
    assert (machine.configuration(), machine.starts) == ({}, 0)
    assert machine.apply(OURS)["changed"]
    assert (machine.configuration(), machine.starts) == (OURS, 1)
    result = machine.apply(OURS)
    assert (result["changed"], result["plan"], machine.starts) == (False, {"action": "none"}, 1)
    machine.running = False
    assert machine.apply(OURS)["plan"] == {"action": "start"}


def test_keys_of_others_stay_and_ours_are_taken_back(machine: Machine) -> None:
    (machine.root / "etc/docker").mkdir(parents=True)
    (machine.root / "etc/docker/daemon.json").write_text('{"runtimes": {"nvidia": {}}, "live-restore": true}')
    machine.apply(OURS)
    assert machine.configuration() == {"runtimes": {"nvidia": {}}, **OURS}
    machine.apply({"log-driver": "journald"})
    assert machine.configuration() == {"runtimes": {"nvidia": {}}, "log-driver": "journald"}
    machine.apply({})
    assert machine.configuration() == {"runtimes": {"nvidia": {}}}


def test_a_configuration_with_which_it_does_not_come_up_is_put_back(machine: Machine) -> None:
    machine.apply(OURS)
    machine.hates = {"bip"}
    with pytest.raises(FleetError, match=r"does not come up.*taken back") as failure:
        machine.apply({**OURS, "bip": "x"})
    assert (machine.configuration(), machine.running) == (OURS, True)
    assert failure.value.seen == "unknown log opt"
    assert "runs again as before" in failure.value.remedy


def test_an_engine_that_had_no_configuration_has_none_again(machine: Machine) -> None:
    machine.hates = {"live-restore"}
    with pytest.raises(FleetError, match="taken back"):
        machine.apply(OURS)
    assert not (machine.root / "etc/docker/daemon.json").exists()
    assert machine.running


def test_an_engine_that_can_check_is_asked_first(machine: Machine) -> None:
    machine.help, machine.hates = "--validate  Validate the configuration", {"bip"}
    with pytest.raises(FleetError, match="refuses its configuration") as failure:
        machine.apply({"bip": "x"})
    assert (failure.value.seen, machine.starts, machine.configuration()) == ("it is invalid", 0, {})


def test_what_the_engine_cannot_take_is_left_out(machine: Machine) -> None:
    machine.swarm = "active"
    for name, text in {
        "run/docker.pid": "7",
        "proc/7/comm": "dockerd\n",
        "proc/7/status": "State:\tS",
        "proc/7/cmdline": "dockerd\0--log-driver=journald\0--label\0a=b\0",
    }.items():
        (machine.root / name).parent.mkdir(parents=True, exist_ok=True)
        (machine.root / name).write_text(text)
    machine.apply({**OURS, "labels": ["c=d"], "bip": "10.9.0.1/24"})
    assert machine.configuration() == {"bip": "10.9.0.1/24"}


def test_a_host_without_an_engine_says_what_brings_one(machine: Machine) -> None:
    machine.version = ""
    for name in ("etc/os-release", "usr/bin/apt-get"):
        (machine.root / name).parent.mkdir(parents=True, exist_ok=True)
        (machine.root / name).write_text("ID=ubuntu\nID_LIKE=debian\nVERSION_ID=22.04\n")
    result = machine.apply(OURS)
    assert (result["present"], result["changed"], result["plan"]) == (False, False, {"action": "install"})
    assert result["packages"] == ["docker.io", "iptables", "ca-certificates"]


def test_podman_is_not_replaced(machine: Machine) -> None:
    machine.version = "podman version 4.3.1"
    with pytest.raises(FleetError, match="podman's"):
        machine.apply(OURS)


def test_a_file_that_is_no_configuration_is_named(machine: Machine) -> None:
    (machine.root / "etc/docker").mkdir(parents=True)
    (machine.root / "etc/docker/daemon.json").write_text("{")
    with pytest.raises(FleetError, match=r"cannot be read at /etc/docker/daemon\.json"):
        machine.apply(OURS)


@pytest.mark.parametrize(
    ("release", "program", "manager", "packages"),
    [
        ("ID=debian\nVERSION_ID=12", "apt-get", "apt", ["docker.io", "iptables", "ca-certificates"]),
        ("ID=debian\nVERSION_ID=13", "apt-get", "apt", ["docker.io", "iptables", "ca-certificates", "docker-cli"]),
        ("ID=raspbian\nID_LIKE=debian\nVERSION_ID=12", "apt-get", "apt", ["docker.io", "iptables", "ca-certificates"]),
        ("ID=rocky\nID_LIKE='rhel centos fedora'", "dnf", "dnf", ["docker-ce", "docker-ce-cli", "containerd.io"]),
        ("ID=fedora", "dnf", "dnf", ["moby-engine", "docker-cli", "iptables", "ca-certificates"]),
        ("ID=alpine", "apk", "", []),
        ("ID=debian", "none", "", []),
    ],
)
def test_distributions(release: str, program: str, manager: str, packages: list[str], tmp_path: Path) -> None:
    for name in ("etc/os-release", f"usr/bin/{program}"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(release)
    found = distribution(tmp_path)
    assert (found.manager, list(found.engine_packages)) == (manager, packages)
