# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Devices that need SSH, Python 3.8 and an engine: one like Ubuntu, one like Raspberry Pi OS, one without a package
manager and systemd, one as a hardening guide asks for it, one with a read-only root, one at a site without IPv4.

Nothing is installed on any of them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.edgeml.fleet.tests.lab import guises
from ansible_collections.edgeml.fleet.tests.lab.hosts import find, start

from .conftest import PATIENCE, Fleet, running_lab

pytestmark = [pytest.mark.lab, pytest.mark.timeout(3600)]

DEVICES = ("any-ubuntu", "any-pi", "any-foreign", "any-hardened", "any-image", "any-six")
DIGITS = [str(digit) for digit in range(10)]
# What installs packages is taken away, and says if somebody asks for it.
TRAP = r"""sudo sh -c 'for name in apt-get apt-mark dpkg; do
printf "#!/bin/sh\necho \$0 \$@ >> /var/tmp/asked\nexit 100\n" > /usr/bin/$name; chmod 755 /usr/bin/$name; done'"""


@pytest.fixture(scope="module")
def fleet(request: pytest.FixtureRequest) -> Iterator[Fleet]:
    """The lab, with everything published."""
    with running_lab(request, "any_host") as lab:
        fleet = Fleet(lab, (Path(__file__).with_name("any_host_lab"),))
        if not fleet.lock_file.exists():
            for host in ("any-ubuntu", "any-pi"):
                lab.run(host, TRAP, check=True)
            fleet.publish().must_succeed()
        yield fleet


@pytest.fixture(scope="module")
def in_use(fleet: Fleet) -> Fleet:
    """The same, converged."""
    if not all(map(fleet.converged, DEVICES)):
        fleet.playbook("edgeml.fleet.site").must_succeed()
    return fleet


def test_every_device_serves(in_use: Fleet) -> None:
    for host in DEVICES:
        assert in_use.check(host, ["digits"]) == {"https digits": DIGITS, "grpcs digits": DIGITS}


def test_nothing_was_installed(in_use: Fleet) -> None:
    for host in ("any-ubuntu", "any-pi"):
        assert in_use.lab.run(host, "cat /var/tmp/asked").stdout == ""
    seen = in_use.lab.run("any-foreign", "command -v apt-get dpkg dnf systemctl python3; /opt/python/bin/python3.8 -V")
    assert seen.stdout.split() == ["Python", seen.stdout.split()[-1]]
    assert seen.stdout.startswith("Python 3.8.")


def test_the_second_run_changes_nothing(in_use: Fleet) -> None:
    run = in_use.playbook("edgeml.fleet.site").must_succeed()
    assert {host: run.changed[host] for host in DEVICES} == dict.fromkeys(DEVICES, 0)
    assert {host: run.tasks[host] for host in DEVICES} == dict.fromkeys(DEVICES, 1), run.output[-3000:]


def test_the_host_itself_is_asked_over_grpc(in_use: Fleet) -> None:
    """Health and latency by the modules, with the Python of the host and nothing beside it."""
    told = in_use.told("edgeml.fleet.verify")
    for host in DEVICES:
        last = {module: told[host, module] for module in ("inference_health", "inference_latency")}
        assert all(answer["invocation"]["module_args"]["endpoint"].startswith("grpcs://") for answer in last.values())
        assert last["inference_health"]["models"][0]["golden"]
        assert last["inference_latency"]["models"][0]["samples"] >= 5


def test_a_hardened_host_stays_as_it_was(in_use: Fleet) -> None:
    lab = in_use.lab
    refused = lab.run("any-hardened", "sudo --non-interactive true")
    assert "tty" in refused.stderr, refused
    mounts = {
        place: lab.run("any-hardened", f"findmnt --noheadings --output SOURCE,OPTIONS --target {place}").stdout
        for place in (*guises.NOEXEC, "/var/lib/edgeml", "/var/lib/docker")
    }
    assert all("noexec" in mounts[place] for place in guises.NOEXEC), mounts
    assert "/dev/loop" in mounts["/var/lib/edgeml"], mounts
    assert len({mounts["/var/lib/edgeml"], mounts["/var/lib/docker"]}) == 2
    configuration = json.loads(lab.run("any-hardened", "cat /etc/docker/daemon.json", check=True).stdout)
    assert guises.HARDENED_ENGINE.items() < configuration.items()
    console = find(lab.client, lab.topology.host("any-hardened"))
    told = str(console.exec_run(["docker", "info", "--format", "{{json .SecurityOptions}}"]).output)
    assert "name=userns" in told
    assert "seccomp.json" in told


def test_a_site_without_ipv4_has_none(in_use: Fleet) -> None:
    for host in ("any-six-gate", "any-six"):
        assert in_use.lab.run(host, "ip -4 -brief address show dev eth0").stdout.split()[2:] == []
        assert in_use.lab.run(host, "ping -c 1 -W 1 10.77.80.10").returncode != 0
    # Not the one that is reached by IPv4 as well.
    assert "fd77:80::30 " in in_use.lab.run("any-six", "getent -s files ahosts registry.edgeml.internal").stdout
    images = in_use.lab.run("any-six", "sudo docker image ls --format '{{.Repository}}'", check=True).stdout
    assert "registry.edgeml.internal:5443/edgeml/runtime" in images


def test_an_address_that_comes_late_at_boot(in_use: Fleet) -> None:
    """The device listens at that address alone. Its runtime waits for it without a restart, which the guard counts."""
    lab, host = in_use.lab, in_use.lab.topology.host("any-six")
    lab.power_cut(host.name)
    container = find(lab.client, host)
    start(container, host)
    assert container.exec_run(["ip", "-6", "address", "flush", "dev", "eth0", "scope", "global"]).exit_code == 0
    socket = "$(ls -t /var/lib/edgeml/run/*/rest.sock | head -n 1)"
    ready = f"until curl -sf --unix-socket {socket} http://localhost/v2/health/ready; do sleep 1; done"
    assert container.exec_run(["timeout", "300", "sh", "-c", ready]).exit_code == 0
    came = ["ip", "-6", "address", "add", f"{host.address}/64", "dev", "eth0", "nodad"]
    assert container.exec_run(came).exit_code == 0
    assert in_use.check(host.name, ["digits"], wait=PATIENCE)["https digits"] == DIGITS
    restarts = container.exec_run(["docker", "inspect", "--format", "{{.RestartCount}}", "edgeml-runtime"]).output
    assert restarts == b"0\n"


def test_a_read_only_root_is_written_to_where_the_inventory_says(in_use: Fleet) -> None:
    assert in_use.lab.run("any-image", "sudo touch /usr/probe /etc/probe").stderr.count("Read-only file system") == 2
    migrate = "cat /proc/sys/net/ipv4/tcp_migrate_req"
    assert in_use.lab.run("any-image", migrate).stdout == "0\n", "it could not be kept for the next start"
    assert in_use.lab.run("any-ubuntu", migrate).stdout == "1\n"
    moved = "inference_runtime_configuration_directory"
    run = in_use.playbook("edgeml.fleet.preflight", "--limit", "any-image", "-e", f"{moved}=/etc/edgeml/runtime")
    assert run.code != 0
    line = next(line for line in run.output.splitlines() if line.startswith("any-image"))
    assert re.search(r"refuse +read_only +/etc/edgeml/runtime is on / ", line), run.output
    assert f"set {moved} to" in line


def test_a_configuration_that_the_engine_does_not_take_is_put_back(in_use: Fleet) -> None:
    """On a host with systemd and on one without: what serves serves again, and the file is as it was."""
    for host in ("any-ubuntu", "any-foreign"):
        before = in_use.lab.run(host, "cat /etc/docker/daemon.json", check=True).stdout
        options = '{"docker_engine_configuration": {"log-driver": "journald", "log-opts": {"max-file": "3"}}}'
        run = in_use.playbook("edgeml.fleet.site", "--limit", f"controllers,any-gate,{host}", "-e", options)
        assert run.code != 0
        assert "taken back" in run.output, run.output[-4000:]
        assert in_use.lab.run(host, "cat /etc/docker/daemon.json", check=True).stdout == before
        assert in_use.check(host, ["digits"], wait=PATIENCE)["https digits"] == DIGITS


def test_an_engine_in_a_swarm_is_taken_as_it_is(in_use: Fleet) -> None:
    """It was in one before the fleet came: without live-restore, which a swarm's engine does not start with."""
    lab = in_use.lab
    before = "rm -f /etc/docker/daemon.json /var/lib/edgeml/engine.json && systemctl restart docker"
    join = f"docker swarm init --advertise-addr {in_use.address('any-pi')}"
    lab.run("any-pi", f"sudo sh -c '{before} && {join}'", check=True)
    in_use.playbook("edgeml.fleet.site", "--limit", "controllers,any-gate,any-pi").must_succeed()
    state = "sudo docker info --format '{{.Swarm.LocalNodeState}} {{.LiveRestoreEnabled}}'"
    assert lab.run("any-pi", state, check=True).stdout == "active false\n"
    assert in_use.check("any-pi", ["digits"], wait=PATIENCE)["https digits"] == DIGITS
