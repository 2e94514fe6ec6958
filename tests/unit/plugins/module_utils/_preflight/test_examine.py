# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What each fault of a host is called, how severe it is, and that a sound host gets no finding."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible_collections.edgeml.fleet.plugins.module_utils._preflight.examine import examine
from ansible_collections.edgeml.fleet.plugins.module_utils._preflight.host import (
    Certificate,
    Content,
    Finding,
    Host,
    Port,
    RegistryAccess,
    Requires,
    Wanted,
)

NOW = 1_800_000_000.0
V2 = "pni ssse3 cx16 sse4_1 sse4_2 popcnt"
DAY = 86400.0
IMAGE = Content("image", "image runtime", "edgeml/runtime", "sha256:" + "a" * 64, 100 << 20)
MODEL = Content("model", "model digits 1.0.0", "edgeml/models/digits", "sha256:" + "b" * 64, 10 << 20)
MIRRORED = Content("mirrored", "image runtime for amd64", "edgeml/runtime", "sha256:" + "a" * 64, 100 << 20)
VALID = Certificate("ca.crt", NOW - DAY, NOW + 365 * DAY)
DEVICE = Wanted(
    architecture="amd64",
    content=[IMAGE, MODEL],
    certificates=[VALID],
    engine_packages=["docker.io"],
    memory_mb={"runtime": 428},
    controller_time=NOW,
)


class Machine(Host):
    """A sound amd64 host whose files and programs a test may spoil."""

    def __init__(self, root: Path) -> None:
        super().__init__(self.answer, root, "x86_64", 64)
        self.time = NOW
        self.programs: dict[str, tuple[int, str]] = {
            "docker info": (0, json.dumps({"ServerVersion": "20.10.24", "DockerRootDir": "/var/lib/docker"})),
            "docker container ls": (0, ""),
            "docker image inspect": (1, ""),
            "modprobe": (1, ""),
            "dpkg-query": (1, ""),
            "env LC_ALL=C apt-cache policy": (0, ""),
        }
        for name, text in {
            "proc/meminfo": "MemTotal:        4096000 kB\nMemAvailable:    2048000 kB\n",
            "proc/cpuinfo": f"processor\t: 0\nflags\t\t: fpu sse2 {V2} avx2\n",
            "proc/filesystems": "nodev\tsysfs\nnodev\toverlay\n\text4\n",
            "proc/cgroups": "#subsys_name\thierarchy\tnum_cgroups\tenabled\n"
            "cpu\t1\t10\t1\nmemory\t2\t10\t1\npids\t3\t10\t1\n",
            "proc/sys/kernel/osrelease": "6.1.0-31-amd64\n",
            "proc/sys/net/ipv4/tcp_migrate_req": "0\n",
            "var/lib/docker/marker": "",
            "usr/bin/apt-get": "",
            "etc/os-release": 'ID=debian\nVERSION_ID="12"\nPRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\n',
            "var/lib/edgeml/marker": "",
        }.items():
            self.write(name, text)

    def answer(self, arguments: list[str]) -> tuple[int, str, str]:
        line = " ".join(arguments)
        if line.startswith("timeout 20 "):
            line = line[len("timeout 20 ") :]
        for program, (code, out) in self.programs.items():
            if line.startswith(program):
                return code, out, ""
        return 127, "", ""

    def write(self, name: str, text: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def now(self) -> float:
        return self.time

    def findings(self, wanted: Wanted) -> dict[str, Finding]:
        return {finding.name: finding for finding in examine(self, wanted).findings}


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Free bytes and inodes of every file system."""
    figures = SimpleNamespace(f_bavail=1 << 30, f_frsize=1, f_files=1 << 20, f_favail=1 << 20)
    monkeypatch.setattr(os, "statvfs", lambda path: figures)
    return figures


def test_a_sound_host_gets_no_finding(machine: Machine) -> None:
    examination = examine(machine, DEVICE)
    assert examination.findings == []
    assert examination.missing == [IMAGE, MODEL]
    assert examination.facts == {
        "architecture": "amd64",
        "memory_mb": 4000,
        "cpu_features": sorted(["avx2", "fpu", "sse2", *V2.split()]),
        "accelerator": "",
    }


def test_what_is_there_is_not_missing(machine: Machine) -> None:
    machine.write(f"var/lib/edgeml/models/{'b' * 64}/model.onnx", "")
    machine.write(f"var/lib/edgeml/mirror/generations/1/v2/edgeml/runtime/manifests/sha256:{'a' * 64}.oci-manifest", "")
    other = replace(MODEL, runtime="vision")
    assert examine(machine, replace(DEVICE, content=[MODEL, MIRRORED, other])).missing == [other]


def test_accelerator_and_arm64(machine: Machine) -> None:
    machine.machine = "aarch64"
    machine.write("proc/cpuinfo", "processor\t: 0\nFeatures\t: fp asimd\n")
    machine.write("dev/hailo0", "")
    facts = examine(machine, Wanted()).facts
    assert (facts["architecture"], facts["cpu_features"], facts["accelerator"]) == ("arm64", ["asimd", "fp"], "hailo")


def test_processor_below_x86_64_v2(machine: Machine) -> None:
    """The server would die of SIGILL."""
    machine.write("proc/cpuinfo", f"processor\t: 0\nflags\t\t: fpu sse2 {V2.replace(' sse4_2 popcnt', '')}\n")
    finding = machine.findings(DEVICE)["processor"]
    assert (finding.severity, finding.value) == ("refuse", "lacks sse4_2, popcnt")
    assert finding.need.startswith("x86-64-v2")
    assert machine.findings(replace(DEVICE, content=[MIRRORED])) == {}  # a mirror computes nothing
    machine.write("proc/cpuinfo", "processor\t: 0\n")
    assert machine.findings(DEVICE) == {}  # nothing is known


@pytest.mark.parametrize(
    ("kernel", "bits", "words"),
    [("aarch64", 64, "edgeml_architecture"), ("armv7l", 32, "64 bit system"), ("x86_64", 32, "64 bit system")],
)
def test_architecture(machine: Machine, kernel: str, bits: int, words: str) -> None:
    machine.machine, machine.pointer_bits = kernel, bits
    finding = machine.findings(DEVICE)["architecture"]
    assert finding.severity == "refuse"
    assert finding.need == "amd64"
    assert words in finding.remedy


def test_disk_space_counts_all_that_comes_by_file_system(machine: Machine, free: SimpleNamespace) -> None:
    free.f_bavail = (4 * 100 + 2 * 10 + 64) << 20
    assert machine.findings(DEVICE) == {}
    free.f_bavail -= 1
    finding = machine.findings(DEVICE)["disk_space"]
    assert finding.severity == "refuse"
    assert "483 MiB free" in finding.value
    assert "484 MiB" in finding.need


def test_a_mirror_needs_what_the_lock_names_and_no_more(machine: Machine, free: SimpleNamespace) -> None:
    wanted = Wanted(content=[MIRRORED])
    free.f_bavail = 164 << 20
    assert machine.findings(wanted) == {}
    free.f_bavail -= 1
    assert "/var/lib/edgeml/mirror" in machine.findings(wanted)["disk_space"].value


def test_nothing_to_come_needs_no_space(machine: Machine, free: SimpleNamespace) -> None:
    free.f_bavail = free.f_favail = 0
    machine.programs["docker image inspect"] = (0, "")
    machine.write(f"var/lib/edgeml/models/{'b' * 64}/model.onnx", "")
    # An image is looked for by the registry's name.
    findings = machine.findings(Wanted.from_options({"content": [], "registry": {"address": "r:1"}}))
    assert "disk_space" not in findings


def test_inodes(machine: Machine, free: SimpleNamespace) -> None:
    free.f_favail = 100
    assert machine.findings(DEVICE)["disk_inodes"].severity == "refuse"
    free.f_files = 0  # a file system without a fixed number
    assert machine.findings(DEVICE) == {}


def test_an_engine_to_come_needs_space(machine: Machine, free: SimpleNamespace) -> None:
    machine.programs["docker info"] = (127, "")
    machine.programs["dpkg-query"] = (0, "docker.io installed\n")
    free.f_bavail = 300 << 20
    assert "disk_space" in machine.findings(replace(DEVICE, content=[]))


def test_memory_for_old_and_new(machine: Machine) -> None:
    machine.write("proc/meminfo", "MemTotal: 1024000 kB\nMemAvailable: 409600 kB\n")
    finding = machine.findings(DEVICE)["memory"]
    assert finding.severity == "refuse"
    assert "400 of 1000 MiB" in finding.value
    assert "428 MiB" in finding.need


def containers(machine: Machine, **resident_mb: int) -> None:
    """Let containers run that take so much memory; an underscore stands for a dash."""
    described = []
    for process, (name, size) in enumerate(resident_mb.items(), 77):
        described.append({"Id": f"f00d{process}", "Name": "/" + name.replace("_", "-"), "NetworkSettings": {}})
        machine.write(f"proc/{process}/cgroup", f"0::/system.slice/docker-f00d{process}.scope\n")
        machine.write(f"proc/{process}/statm", f"1 {(size << 20) // os.sysconf('SC_PAGE_SIZE')} 1\n")
    machine.programs["docker container ls"] = (0, "f00d\n")
    machine.programs["docker container inspect"] = (0, json.dumps(described))


def test_memory_of_the_running_release_is_measured(machine: Machine) -> None:
    containers(machine, edgeml_runtime=2100)
    finding = machine.findings(DEVICE)["memory"]
    assert "beside 2100 MiB" in finding.value
    assert "2100 MiB" in finding.need


@pytest.mark.parametrize(
    ("running", "need"),
    [
        ({}, 700),  # the first release: both will run
        ({"edgeml_runtime": 400, "edgeml_runtime_vision": 300}, 400),  # one at a time is replaced
        ({"edgeml_runtime": 400}, 700),  # a second runtime comes, while the first is replaced
    ],
)
def test_runtimes_are_released_one_after_the_other(machine: Machine, running: dict[str, int], need: int) -> None:
    containers(machine, **running)
    wanted = replace(DEVICE, memory_mb={"runtime": 400, "vision": 300})
    machine.write("proc/meminfo", f"MemTotal: 4096000 kB\nMemAvailable: {need * 1024} kB\n")
    assert "memory" not in machine.findings(wanted)
    machine.write("proc/meminfo", f"MemTotal: 4096000 kB\nMemAvailable: {need * 1024 - 1} kB\n")
    assert f"{need} MiB" in machine.findings(wanted)["memory"].need


def test_the_group_that_a_virtual_host_is_in_limits_it(machine: Machine) -> None:
    machine.write("sys/fs/cgroup/memory.max", f"{500 << 20}\n")
    machine.write("sys/fs/cgroup/memory.current", f"{200 << 20}\n")
    assert "300 of 500 MiB" in machine.findings(DEVICE)["memory"].value


def test_cached_files_are_available(machine: Machine) -> None:
    machine.write("sys/fs/cgroup/memory.max", f"{900 << 20}\n")
    machine.write("sys/fs/cgroup/memory.current", f"{768 << 20}\n")
    machine.write("sys/fs/cgroup/memory.stat", f"anon {75 << 20}\nfile {693 << 20}\ninactive_file {693 << 20}\n")
    assert "memory" not in machine.findings(DEVICE)


@pytest.mark.parametrize(
    ("mounts", "kind"),
    [
        ("/dev/sda1 / ext4 rw 0 0\n", ""),
        ("tmpfs / tmpfs rw 0 0\n/dev/sda1 /var ext4 rw 0 0\n", ""),
        ("/dev/sda1 / ext4 rw 0 0\ntmpfs /var/lib/edge tmpfs rw 0 0\n", ""),
        ("/dev/sda1 / ext4 rw 0 0\ntmpfs /var/lib/edgeml tmpfs rw 0 0\n", "tmpfs"),
        (
            "tmpfs /cow tmpfs rw 0 0\nroot / overlay rw,lowerdir=/ro,upperdir=/cow/up,workdir=/cow/w 0 0\n",
            "overlay on tmpfs",
        ),
        ("root / overlay rw,lowerdir=/ro,upperdir=/of/another/machine,workdir=/w 0 0\n", ""),
    ],
)
def test_a_directory_in_memory(machine: Machine, mounts: str, kind: str) -> None:
    machine.write("proc/mounts", mounts)
    machine.write("cow/up/file", "")
    finding = machine.findings(DEVICE).get("directory_in_memory")
    assert (finding.value if finding else "") == (f"/var/lib/edgeml is on {kind}" if kind else "")


ROOT = "overlay / overlay ro,lowerdir=/l 0 0\n"


@pytest.mark.parametrize(
    ("mounts", "places"),
    [
        (ROOT, ["/etc/edgeml/runtime", "/var/lib/edgeml", "/etc/docker", "/etc/hosts", "/etc/systemd/system"]),
        (ROOT + "/dev/a /var ext4 rw 0 0\n/dev/a /etc ext4 rw 0 0\n", []),
        (ROOT + "/dev/a /var ext4 rw 0 0\noverlay /etc overlay rw,upperdir=/u 0 0\n/dev/b /etc/docker ext4 ro 0 0\n",
         ["/etc/docker"]),
        (ROOT + "/dev/a / ext4 rw,errors=remount-ro 0 0\n", []),
    ],
)  # fmt: skip
def test_a_place_that_cannot_be_written_to(machine: Machine, mounts: str, places: list[str]) -> None:
    machine.write("proc/mounts", mounts)
    machine.write("run/systemd/system/unit", "")
    wanted = replace(
        DEVICE,
        content=[MODEL],
        registry=RegistryAccess("registry.test:5443", ip_address="192.0.2.1"),
        directories={"inference_runtime_configuration_directory": "/etc/edgeml/runtime"},
    )
    machine.write(f"var/lib/edgeml/models/{'b' * 64}/model.onnx", "")
    found = [finding for finding in examine(machine, wanted).findings if finding.name == "read_only"]
    assert [finding.value.split()[0] for finding in found] == places
    assert all(finding.severity == "refuse" for finding in found)
    if "/etc/hosts" in places:
        assert found[0].remedy.startswith("set inference_runtime_configuration_directory to a directory")
        assert "leave edgeml_mirror_ip_address empty" in found[3].remedy


def test_what_models_require_is_written_as_well(machine: Machine) -> None:
    machine.write("proc/mounts", ROOT)
    requires = Requires(kernel_modules=["overlay"], sysctls=["kernel.osrelease"])
    found = [f.value for f in examine(machine, replace(DEVICE, requires=requires)).findings if f.name == "read_only"]
    assert [value.split()[0] for value in found] == ["/var/lib/edgeml", "/etc/sysctl.d", "/etc/modules-load.d"]


def test_a_directory_whose_name_is_too_long_for_a_socket(machine: Machine) -> None:
    fits = "/" + "d" * (107 - len("//run/a/metrics.sock"))
    assert "directory" not in machine.findings(replace(DEVICE, root=fits))
    finding = machine.findings(replace(DEVICE, root=fits + "d"))["directory"]
    assert finding.severity == "refuse"
    assert "108 bytes" in finding.value
    assert "inference_runtime_directory" in finding.remedy
    assert "directory" in machine.findings(replace(DEVICE, root=fits, memory_mb={"vision": 300}))


def test_a_host_that_has_its_release_is_only_warned_of_memory(machine: Machine) -> None:
    machine.write("proc/meminfo", "MemTotal: 1024000 kB\nMemAvailable: 409600 kB\n")
    machine.write(f"var/lib/edgeml/models/{'b' * 64}/model.onnx", "")
    assert machine.findings(replace(DEVICE, content=[MODEL]))["memory"].severity == "warn"


def test_kernel(machine: Machine) -> None:
    machine.write("proc/sys/kernel/osrelease", "3.10.0-1160\n")
    machine.write("proc/filesystems", "\text4\n")
    (machine.root / "proc/sys/net/ipv4/tcp_migrate_req").unlink()
    findings = machine.findings(DEVICE)
    assert {name: finding.severity for name, finding in findings.items()} == {
        "kernel": "refuse",
        "overlayfs": "refuse",
        "tcp_migrate_req": "warn",
    }
    machine.programs["modprobe"] = (0, "")
    assert "overlayfs" not in machine.findings(DEVICE)


def test_memory_controller_is_off(machine: Machine) -> None:
    machine.write("proc/cgroups", "#subsys_name\thierarchy\tnum_cgroups\tenabled\ncpu\t1\t1\t1\npids\t1\t1\t1\n")
    machine.write("sys/fs/cgroup/cgroup.controllers", "cpuset cpu io pids\n")
    finding = machine.findings(DEVICE)["cgroup"]
    assert finding.severity == "warn"
    assert "cgroup_enable=memory" in finding.remedy
    machine.write("sys/fs/cgroup/cgroup.controllers", "cpuset cpu io memory pids\n")
    assert "cgroup" not in machine.findings(DEVICE)


@pytest.mark.parametrize(
    ("info", "name", "severity"),
    [
        ({"ServerVersion": "19.03.8", "DockerRootDir": "/var/lib/docker"}, "engine", "refuse"),
        ({"ServerVersion": ""}, "engine", "warn"),
        (
            {"ServerVersion": "26.1.5", "DockerRootDir": "/var/lib/docker", "Driver": "vfs"},
            "storage_driver",
            "warn",
        ),
    ],
)
def test_engine(machine: Machine, info: Mapping[str, str], name: str, severity: str) -> None:
    machine.programs["docker info"] = (0, json.dumps(info))
    assert machine.findings(DEVICE)[name].severity == severity


@pytest.mark.parametrize(
    ("info", "words"),
    [
        ({"DockerRootDir": "/var/snap/docker/common/var-lib-docker"}, "snap's"),
        ({"SecurityOptions": ["name=seccomp,profile=default", "name=rootless"]}, "without root"),
    ],
)
def test_an_engine_that_does_not_see_the_host(machine: Machine, info: Mapping[str, Any], words: str) -> None:
    sound = {"ServerVersion": "26.1.5", "DockerRootDir": "/home/a/docker"}
    machine.programs["docker info"] = (0, json.dumps({**sound, **info}))
    finding = machine.findings(DEVICE)["engine"]
    assert (finding.severity, words in finding.value) == ("refuse", True)


def test_podman_behind_the_name_docker(machine: Machine) -> None:
    machine.programs["docker info"] = (0, json.dumps({"host": {"arch": "amd64"}, "version": {"Version": "4.3.1"}}))
    machine.programs["docker --version"] = (0, "podman version 4.3.1\n")
    finding = machine.findings(DEVICE)["engine"]
    assert (finding.severity, finding.value) == ("refuse", "the command docker is podman's")


def test_an_engine_that_hangs(machine: Machine) -> None:
    machine.programs["docker info"] = (124, "")
    assert machine.findings(DEVICE)["engine"].value == "installed, but does not answer within 20 s"


def test_an_engine_that_nobody_will_install_any_more(machine: Machine) -> None:
    machine.programs = {name: answer for name, answer in machine.programs.items() if "docker" not in name}
    wanted = replace(DEVICE, engine_packages=[])
    assert "engine" not in machine.findings(wanted)
    finding = machine.findings(replace(wanted, engine_is_here=True))["engine"]
    assert (finding.severity, finding.value) == ("refuse", "there is none")
    assert "edgeml.fleet.docker_engine" in finding.remedy


def test_a_controller_in_the_network_that_an_engine_to_come_takes(machine: Machine) -> None:
    head = "  sl  local_address rem_address   st\n"
    client = "040311AC" if sys.byteorder == "little" else "AC110304"  # 172.17.3.4
    machine.write("proc/net/tcp", f"{head}   0: 020311AC:0016 {client}:D431 01\n   1: 020311AC:1F40 0100007F:0016 01\n")
    assert "engine_network" not in machine.findings(DEVICE), "the engine that is there has its network already"
    machine.programs["docker info"] = (127, "")
    finding = machine.findings(DEVICE)["engine_network"]
    assert (finding.severity, finding.value.split()[0]) == ("refuse", "172.17.3.4")
    assert "engine_network" not in machine.findings(replace(DEVICE, engine_configuration={"bip": "10.9.0.1/24"}))


@pytest.mark.parametrize(
    ("no_proxy", "refused"),
    [
        ("", True),
        ("localhost,127.0.0.0/8", True),
        ("other.internal", True),
        ("registry.edgeml.internal:444", True),
        ("registry.edgeml.internal", False),
        ("localhost, .edgeml.internal", False),
        ("internal:5443", False),
        ("*", False),
    ],
)
def test_a_proxy_of_the_engine(machine: Machine, no_proxy: str, refused: bool) -> None:
    info = {"ServerVersion": "26.1.5", "DockerRootDir": "/var/lib/docker", "HttpsProxy": "http://proxy:3128"}
    machine.programs["docker info"] = (0, json.dumps({**info, "NoProxy": no_proxy}))
    registry = Wanted.from_options({"registry": {"address": "registry.edgeml.internal:5443"}}).registry
    found = machine.findings(replace(DEVICE, registry=registry)).get("engine_proxy")
    assert (found is not None) == refused
    if found:
        assert "http://proxy:3128" in found.value
        assert "registry.edgeml.internal" in found.remedy


def test_what_stands_against_an_installation(machine: Machine) -> None:
    machine.programs["docker info"] = (127, "")
    wanted = replace(DEVICE, engine_packages=[])
    assert machine.findings(wanted) == {}
    machine.programs["env LC_ALL=C apt-get --simulate"] = (0, "Remv containerd.io [1.6.20]\nInst docker.io (20.10)\n")
    finding = machine.findings(wanted)["package_conflict"]
    assert (finding.severity, finding.value) == (
        "refuse",
        "ca-certificates, docker.io, iptables would remove containerd.io",
    )
    machine.write("var/lib/dpkg/updates/0001", "")
    finding = machine.findings(wanted)["package_manager"]
    assert (finding.severity, finding.remedy) == ("refuse", "run dpkg --configure -a on the host")


def test_what_a_host_lacks_that_is_to_use_its_gpus(machine: Machine) -> None:
    """A name of CDI is no file of the host."""
    found = machine.findings(replace(DEVICE, requires=Requires(gpus=["all"], devices=["nvidia.com/gpu=0"])))
    assert set(found) == {"gpu_driver", "gpu_toolkit", "cdi"}


def test_a_clock_that_is_off_is_a_warning(machine: Machine) -> None:
    machine.time = NOW + 301
    finding = machine.findings(DEVICE)["clock"]
    assert finding.severity == "warn"
    assert "301 s off" in finding.value


def test_a_board_without_a_clock_is_refused_only_if_tls_would_fail(machine: Machine) -> None:
    machine.time = 1000.0
    registry = {"address": "registry.invalid:5443"}
    from_registry = Wanted.from_options({"registry": registry}).registry
    since_2020 = Certificate("ca.crt", 0.0, NOW + 365 * DAY)
    assert machine.findings(replace(DEVICE, certificates=[since_2020]))["clock"].severity == "warn"
    assert machine.findings(DEVICE)["clock"].severity == "warn"  # nothing is fetched over TLS
    assert machine.findings(replace(DEVICE, registry=from_registry))["clock"].severity == "refuse"


@pytest.mark.parametrize(
    ("certificate", "severity"),
    [
        (Certificate("a.crt", NOW - DAY, NOW - 1), "refuse"),
        (Certificate("a.crt", NOW + 1, NOW + 365 * DAY), "refuse"),
        (Certificate("a.crt", NOW - DAY, NOW + 29 * DAY), "warn"),
        (Certificate("a.crt", error="No such file or directory"), "refuse"),
    ],
)
def test_certificate(machine: Machine, certificate: Certificate, severity: str) -> None:
    finding = machine.findings(replace(DEVICE, certificates=[certificate]))["certificate"]
    assert finding.severity == severity
    assert "a.crt" in finding.value


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def test_port_of_another_program(machine: Machine, listener: socket.socket) -> None:
    port = listener.getsockname()[1]
    wanted = replace(DEVICE, ports=[Port("127.0.0.1", port, "inference_runtime_rest_port")])
    finding = machine.findings(wanted)["port"]
    assert finding.severity == "refuse"
    assert "inference_runtime_rest_port" in finding.remedy


@pytest.mark.parametrize("port", [-1, 0, 65536, 70000])
def test_a_number_that_is_not_a_port(machine: Machine, port: int) -> None:
    finding = machine.findings(replace(DEVICE, ports=[Port("127.0.0.1", port, "site_mirror_port")]))["port"]
    assert str(port) in finding.value
    assert "1 to 65535" in finding.need
    assert "site_mirror_port" in finding.remedy


def test_an_address_that_cannot_be_a_name(machine: Machine) -> None:
    finding = machine.findings(replace(DEVICE, ports=[Port("a" * 70, 8000, "site_mirror_port")]))["port"]
    assert finding.need == "an address of this host"


def test_port_that_our_container_publishes(machine: Machine, listener: socket.socket) -> None:
    port = listener.getsockname()[1]
    published: dict[str, Any] = {"5443/tcp": [{"HostIp": "127.0.0.1", "HostPort": str(port)}], "9/tcp": None}
    machine.programs["docker container ls"] = (0, "f00d\n")
    machine.programs["docker container inspect"] = (
        0,
        json.dumps([{"Id": "f00d", "Name": "/edgeml-x", "NetworkSettings": {"Ports": published}}]),
    )
    assert "port" not in machine.findings(replace(DEVICE, ports=[Port("127.0.0.1", port, "x")]))
    assert "port" not in machine.findings(replace(DEVICE, ports=[Port("0.0.0.0", port, "x")]))  # noqa: S104
    finding = machine.findings(replace(DEVICE, ports=[Port("192.0.2.1", port, "x")]))["port"]
    assert finding.need == "an address of this host"


def test_port_of_our_container_in_the_network_of_the_host(machine: Machine, listener: socket.socket) -> None:
    port = listener.getsockname()[1]
    machine.programs["docker container ls"] = (0, "f00d\n")
    machine.programs["docker container inspect"] = (
        0,
        json.dumps([{"Id": "f00d", "Name": "/edgeml-x", "NetworkSettings": {"Ports": {}}}]),
    )
    row = f"   0: 0100007F:{port:04X} 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1"
    machine.write("proc/net/tcp", f"  sl  local_address\n{row}\n")
    (machine.root / "proc/77/fd").mkdir(parents=True)
    (machine.root / "proc/77/fd/5").symlink_to("socket:[4711]")
    machine.write("proc/77/comm", "python3\n")
    machine.write("proc/77/cgroup", "12:pids:/docker/cafe\n")
    wanted = replace(DEVICE, ports=[Port("127.0.0.1", port, "x")])
    assert "python3 (process 77)" in machine.findings(wanted)["port"].value
    machine.write("proc/77/cgroup", "12:pids:/docker/f00d\n")
    assert "port" not in machine.findings(wanted)


def test_address_of_another_host(machine: Machine) -> None:
    finding = machine.findings(replace(DEVICE, ports=[Port("192.0.2.1", 8000, "x")]))["port"]
    assert finding.need == "an address of this host"


def test_one_port_for_two(machine: Machine) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    wanted = replace(DEVICE, ports=[Port("127.0.0.1", port, "rest"), Port("127.0.0.1", port, "grpc")])
    assert machine.findings(wanted)["port"].remedy == "change one of grpc, rest"


def test_packages(machine: Machine) -> None:
    wanted = replace(DEVICE, requires=Requires(packages=["libgomp1", "libgone", "libnew"]))
    machine.programs["dpkg-query"] = (1, "libgomp1 installed\nlibnew not-installed\n")
    machine.programs["env LC_ALL=C apt-cache policy"] = (0, "libnew:\n  Installed: (none)\n  Candidate: 1.2\n")
    assert machine.findings(wanted) == {}, "without lists nobody knows"
    machine.write("var/lib/apt/lists/example_dists_bookworm_Packages", "")
    finding = machine.findings(wanted)["package"]
    assert finding.severity == "refuse"
    assert finding.value.startswith("libgone:")


def test_package_sources_that_nobody_reaches(machine: Machine, listener: socket.socket) -> None:
    wanted = replace(DEVICE, requires=Requires(packages=["libgomp1"]))
    machine.programs["dpkg-query"] = (1, "")
    with socket.create_server(("127.0.0.1", 0)) as closed:
        dead = closed.getsockname()[1]
    machine.programs["apt-get --print-uris update"] = (0, f"'http://127.0.0.1:{dead}/debian/InRelease' a 0\n")
    assert "package_source" not in machine.findings(replace(wanted, packages_from_mirror=True))
    finding = machine.findings(wanted)["package_source"]
    assert finding.severity == "refuse"
    assert finding.value == f"libgomp1 to install, and no connection to 127.0.0.1:{dead}"
    proxy = f'Acquire::http::Proxy "http://127.0.0.1:{listener.getsockname()[1]}/";'
    machine.programs["apt-config dump"] = (0, proxy + "\n")
    assert machine.findings(wanted) == {}, "the proxy is reached"
    del machine.programs["apt-config dump"]
    machine.programs["apt-get --print-uris update"] = (0, "'cdrom://disk/InRelease' a 0\n")
    assert machine.findings(wanted) == {}
    machine.programs["dpkg-query"] = (0, "libgomp1 installed\n")
    assert machine.findings(wanted) == {}


def test_a_mirror_on_the_same_host_takes_its_space_and_asks_elsewhere(machine: Machine, free: SimpleNamespace) -> None:
    registry = {"address": "registry.invalid:5443", "ip_address": "127.0.0.1"}
    both = Wanted.from_options({"content": [asdict(MODEL), asdict(MIRRORED)], "registry": registry})
    free.f_bavail = (2 * 10 + 100 + 64 - 1) << 20
    assert "disk_space" in machine.findings(both)
    machine.write(f"var/lib/edgeml/models/{'b' * 64}/model.onnx", "")
    assert "registry" not in machine.findings(both)


def test_no_package_manager(machine: Machine) -> None:
    (machine.root / "usr/bin/apt-get").unlink()
    wanted = replace(DEVICE, engine_packages=[])
    assert machine.findings(wanted) == {}, "an engine that is there needs no package manager"
    machine.write("etc/os-release", "ID=buildroot\nPRETTY_NAME='Buildroot 2021.02'\n")
    machine.programs["docker info"] = (127, "")
    finding = machine.findings(wanted)["engine"]
    assert (finding.severity, "Buildroot 2021.02" in finding.value) == ("refuse", True)
    assert finding.remedy.startswith("install an engine and run again")
    machine.programs["docker info"] = (0, json.dumps({"ServerVersion": "20.10.24", "DockerRootDir": "/data"}))
    needy = replace(wanted, requires=Requires(packages=["openssl"]))
    assert machine.findings(needy)["package"].value == "openssl, and Buildroot 2021.02 has neither apt nor dnf"
    machine.write("usr/bin/openssl", "")
    assert machine.findings(needy) == {}, "the program stands for the package"


def test_devices_kernel_modules_and_sysctls(machine: Machine) -> None:
    wanted = replace(
        DEVICE,
        requires=Requires(devices=["/dev/video0"], kernel_modules=["v4l2-loopback"], sysctls=["vm.swappiness"]),
    )
    findings = machine.findings(wanted)
    assert {name: finding.severity for name, finding in findings.items()} == dict.fromkeys(
        ("device", "kernel_module", "sysctl"), "refuse"
    )
    machine.write("dev/video0", "")
    machine.write("sys/module/v4l2_loopback/initstate", "live\n")
    machine.write("proc/sys/vm/swappiness", "60\n")
    assert machine.findings(wanted) == {}


def test_what_is_wrong_in_the_inventory_is_a_finding(machine: Machine) -> None:
    problem = {"what": "Model digit is not in the lock", "where": "host a", "seen": "digit", "remedy": "rename it"}
    finding = machine.findings(replace(DEVICE, problems=[problem]))["inventory"]
    assert (finding.value, finding.remedy) == (
        "Model digit is not in the lock at host a. Seen: digit",
        "rename it",
    )
    finding = machine.findings(replace(DEVICE, problems=[{"what": "It says. What to do: nothing"}]))["inventory"]
    assert (finding.value, finding.remedy) == ("It says. What to do: nothing", "correct it")


def test_ignored_findings_only_warn(machine: Machine) -> None:
    machine.machine = "aarch64"
    result = examine(machine, replace(DEVICE, ignore=["architecture"])).as_result()
    assert result["findings"][0]["severity"] == "warn"
    assert result["msg"] == ""


def test_refusals_come_first_and_make_the_message(machine: Machine) -> None:
    machine.time = NOW + 1000
    machine.machine = "aarch64"
    result = examine(machine, DEVICE).as_result()
    assert [finding["name"] for finding in result["findings"]] == ["architecture", "clock"]
    assert "architecture: aarch64" in result["msg"]
    assert "clock" not in result["msg"]
