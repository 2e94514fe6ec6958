# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Devices that need SSH, Python 3.8 and an engine: one like Ubuntu, one like Raspberry Pi OS, one without a package
manager and systemd, one as a hardening guide asks for it, one with a read-only root, one whose engine leaves images to
containerd, one at a site without IPv4.

Nothing is installed on any of them.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from ansible_collections.edgeml.fleet.plugins.module_utils._release.agent import GUARD_SECONDS
from ansible_collections.edgeml.fleet.plugins.module_utils._release.guard import UNREADY
from ansible_collections.edgeml.fleet.tests.lab import guises
from ansible_collections.edgeml.fleet.tests.lab.hosts import find, start

from .conftest import PATIENCE, ROOT, Fleet, running_lab

pytestmark = [pytest.mark.lab, pytest.mark.timeout(3600)]

DEVICES = ("any-ubuntu", "any-pi", "any-foreign", "any-hardened", "any-image", "any-containerd", "any-six")
LOOKS = UNREADY // GUARD_SECONDS + 1
#: The guard of a host, so many times as it looks in the minutes after which it gives up a release.
GUARD = f"""
import sys; sys.path.insert(0, sys.argv[1])
from pathlib import Path
from ansible_collections.edgeml.fleet.plugins.module_utils._release.guard import look_after
for _ in range({LOOKS}): look_after(Path("/var/lib/edgeml"))
"""
DIGITS = [str(digit) for digit in range(10)]
# What installs packages is taken away, and says if somebody asks for it.
TRAP = r"""sudo sh -c 'for name in apt-get apt-mark dpkg; do
printf "#!/bin/sh\necho \$0 \$@ >> /var/tmp/asked\nexit 100\n" > /usr/bin/$name; chmod 755 /usr/bin/$name; done'"""


@pytest.fixture(scope="module")
def fleet(request: pytest.FixtureRequest) -> Iterator[Fleet]:
    """The lab, published and converged in one run."""
    with running_lab(request, "any_host") as lab:
        fleet = Fleet(lab, (Path(__file__).with_name("any_host_lab"),))
        if not fleet.lock_file.exists():
            for host in ("any-ubuntu", "any-pi"):
                lab.run(host, TRAP, check=True)
        if not all(map(fleet.converged, DEVICES)):
            fleet.publish("edgeml.fleet.site").must_succeed()
        yield fleet


def test_every_device_serves(fleet: Fleet) -> None:
    for host in DEVICES:
        assert fleet.check(host, ["digits"]) == {"https digits": DIGITS, "grpcs digits": DIGITS}


def test_nothing_was_installed(fleet: Fleet) -> None:
    for host in ("any-ubuntu", "any-pi"):
        assert fleet.lab.run(host, "cat /var/tmp/asked").stdout == ""
    seen = fleet.lab.run("any-foreign", "command -v apt-get dpkg dnf systemctl python3; /opt/python/bin/python3.8 -V")
    assert seen.stdout.split() == ["Python", seen.stdout.split()[-1]]
    assert seen.stdout.startswith("Python 3.8.")


def test_the_second_run_changes_nothing(fleet: Fleet) -> None:
    run = fleet.playbook("edgeml.fleet.site").must_succeed()
    assert {host: run.changed[host] for host in DEVICES} == dict.fromkeys(DEVICES, 0)
    assert {host: run.tasks[host] for host in DEVICES} == dict.fromkeys(DEVICES, 1), run.output[-3000:]


def test_the_host_itself_is_asked_over_grpc(fleet: Fleet) -> None:
    """Health and latency by the modules, with the Python of the host and nothing beside it."""
    told = fleet.told("edgeml.fleet.verify")
    for host in DEVICES:
        last = {module: told[host, module] for module in ("inference_health", "inference_latency")}
        assert all(answer["invocation"]["module_args"]["endpoint"].startswith("grpcs://") for answer in last.values())
        assert last["inference_health"]["models"][0]["golden"]
        assert last["inference_latency"]["models"][0]["samples"] >= 5


def test_a_hardened_host_stays_as_it_was(fleet: Fleet) -> None:
    lab = fleet.lab
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


def test_an_engine_that_leaves_images_to_containerd(fleet: Fleet) -> None:
    """What is lost of it is pulled again, and what it serves is handed over, there and back."""
    lab, host = fleet.lab, "any-containerd"
    kind = "sudo docker info --format '{{json .DriverStatus}}'"
    assert "io.containerd.snapshotter.v1" in lab.run(host, kind, check=True).stdout
    lab.run(host, "sudo sh -c 'docker rm --force edgeml-runtime && docker image prune --all --force'", check=True)
    assert lab.run(host, "sudo docker image ls --quiet", check=True).stdout == ""
    fleet.playbook("edgeml.fleet.site", "--limit", host).must_succeed()
    first = fleet.active_release(host)
    with fleet.asking(host, "digits") as answered:
        level = ("-e", "inference_runtime_log_level=warning")
        fleet.playbook("edgeml.fleet.site", "--limit", host, *level).must_succeed()
        assert fleet.active_release(host) != first
        fleet.playbook("edgeml.fleet.rollback", "--limit", host).must_succeed()
    assert min(answered.values()) > 0
    assert fleet.active_release(host) == first


def test_a_site_without_ipv4_has_none(fleet: Fleet) -> None:
    for host in ("any-six-gate", "any-six"):
        assert fleet.lab.run(host, "ip -4 -brief address show dev eth0").stdout.split()[2:] == []
        assert fleet.lab.run(host, "ping -c 1 -W 1 10.77.80.10").returncode != 0
    # Not the one that is reached by IPv4 as well.
    assert "fd77:80::30 " in fleet.lab.run("any-six", "getent -s files ahosts registry.edgeml.internal").stdout
    images = fleet.lab.run("any-six", "sudo docker image ls --format '{{.Repository}}'", check=True).stdout
    assert "registry.edgeml.internal:5443/edgeml/runtime" in images


def test_an_address_that_comes_late_at_boot(fleet: Fleet) -> None:
    """The device listens at that address alone. Its runtime waits for it, and the guard has no reason to go back."""
    lab, host = fleet.lab, fleet.lab.topology.host("any-six")
    lab.power_cut(host.name)
    container = find(lab.client, host)
    start(container, host)
    assert container.exec_run(["ip", "-6", "address", "flush", "dev", "eth0", "scope", "global"]).exit_code == 0
    socket = "$(ls -t /var/lib/edgeml/run/*/rest.sock | head -n 1)"
    ready = f"until curl -sf --unix-socket {socket} http://localhost/v2/health/ready; do sleep 1; done"
    assert container.exec_run(["timeout", "300", "sh", "-c", ready]).exit_code == 0
    # Minutes as the guard counts them: by its looks.
    told = container.exec_run(["sh", "-c", 'python3 -c "$0" /var/lib/edgeml/agent/*', GUARD])
    assert (told.exit_code, told.output) == (0, b"")
    seen = container.exec_run(["cat", "/var/lib/edgeml/guard.json"]).output
    assert isinstance(seen, bytes)
    watch = json.loads(seen)
    assert (watch["looks"] >= LOOKS, watch["unready"], watch["restarted"]) == (True, 0, [])
    came = ["ip", "-6", "address", "add", f"{host.address}/64", "dev", "eth0", "nodad"]
    assert container.exec_run(came).exit_code == 0
    assert fleet.check(host.name, ["digits"], wait=PATIENCE)["https digits"] == DIGITS
    restarts = container.exec_run(["docker", "inspect", "--format", "{{.RestartCount}}", "edgeml-runtime"]).output
    assert restarts == b"0\n"


def test_a_read_only_root_is_written_to_where_the_inventory_says(fleet: Fleet) -> None:
    assert fleet.lab.run("any-image", "sudo touch /usr/probe /etc/probe").stderr.count("Read-only file system") == 2
    migrate = "cat /proc/sys/net/ipv4/tcp_migrate_req"
    assert fleet.lab.run("any-image", migrate).stdout == "0\n", "it could not be kept for the next start"
    assert fleet.lab.run("any-ubuntu", migrate).stdout == "1\n"
    moved = "inference_runtime_configuration_directory"
    run = fleet.playbook("edgeml.fleet.preflight", "--limit", "any-image", "-e", f"{moved}=/etc/edgeml/runtime")
    assert run.code != 0
    line = next(line for line in run.output.splitlines() if line.startswith("any-image"))
    assert re.search(r"refuse +read_only +/etc/edgeml/runtime is on / ", line), run.output
    assert f"set {moved} to" in line


def test_engines_that_take_no_new_configuration(fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one run, whose strategy is the user's.

    Two engines, with systemd and without, do not come up with what they are given: what serves serves again, and the
    file is as it was. A third is in a swarm, as if before the fleet came, and is taken without live-restore.
    """
    lab, refusing = fleet.lab, ("any-ubuntu", "any-foreign")
    before = "rm -f /etc/docker/daemon.json /var/lib/edgeml/engine.json && systemctl restart docker"
    join = f"docker swarm init --advertise-addr {fleet.address('any-pi')}"
    lab.run("any-pi", f"sudo sh -c '{before} && {join}'", check=True)
    files = [lab.run(host, "cat /etc/docker/daemon.json", check=True).stdout for host in refusing]
    wrong = {"docker_engine_configuration": {"log-driver": "journald", "log-opts": {"max-file": "3"}}}
    (tmp_path / "wrong.yml").write_text(yaml.safe_dump({"all": {"hosts": dict.fromkeys(refusing, wrong)}}))
    monkeypatch.setenv("ANSIBLE_STRATEGY", "free")
    limit = ",".join(("controllers", "any-gate", "any-pi", *refusing))
    run = fleet.playbook("edgeml.fleet.site", "-i", str(tmp_path / "wrong.yml"), "--limit", limit)
    assert run.code != 0
    assert run.output.count("taken back") >= len(refusing), run.output[-4000:]
    assert [lab.run(host, "cat /etc/docker/daemon.json", check=True).stdout for host in refusing] == files
    state = "sudo docker info --format '{{.Swarm.LocalNodeState}} {{.LiveRestoreEnabled}}'"
    assert lab.run("any-pi", state, check=True).stdout == "active false\n"
    for host in ("any-pi", *refusing):
        assert fleet.check(host, ["digits"], wait=PATIENCE)["https digits"] == DIGITS


def test_the_play_of_the_roles_page_alone(fleet: Fleet, tmp_path: Path) -> None:
    """As it stands, in somebody else's directory and inventory, which know of no catalogue, store or group."""
    files = tmp_path / "files"
    files.mkdir()
    signature = fleet.lock_file.with_name(f"{fleet.lock_file.name}.sig")
    for file in (fleet.lock_file, signature, fleet.state / "pki/ca.crt", fleet.state / "signing.key.pub"):
        shutil.copy(file, files)
    play = shutil.copy(ROOT / "docs/examples/inference_runtime.yml", tmp_path)
    reached = {
        "ansible_host": fleet.address("any-ubuntu"),
        "ansible_user": "edge",
        "ansible_ssh_private_key_file": str(fleet.lab.state / "id_ed25519"),
        "ansible_ssh_common_args": f"-o UserKnownHostsFile={fleet.lab.state}/known_hosts -o IdentitiesOnly=yes",
    }
    inventory = tmp_path / "hosts.yml"
    inventory.write_text(yaml.safe_dump({"devices": {"hosts": {"any-ubuntu": reached}}}))
    theirs = Fleet(fleet.lab, (inventory,))
    theirs.playbook(str(play), "-e", f"edgeml_mirror_ip_address={fleet.address('any-gate')}").must_succeed()
    ready = "curl -sf http://127.0.0.1:8080/v2/models/digits/versions/1.0.0/ready"
    assert "true" in fleet.lab.run("any-ubuntu", ready, check=True).stdout
