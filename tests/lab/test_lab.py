# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab keeps its promises: hosts boot, sites can be cut, power can be cut, and nothing stays behind.

The tests use a small lab of their own, so that a fleet's lab beside it is left alone.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.tests.lab import hosts, machine, network
from ansible_collections.edgeml.fleet.tests.lab.lab import Lab, pristine_lab
from ansible_collections.edgeml.fleet.tests.lab.topology import TOPOLOGIES, Topology

pytestmark = pytest.mark.timeout(3600)

ROOT = Path(__file__).resolve().parents[2]
CENTRAL = "10.77.90.10"
MIRROR = "10.77.91.10"
DEVICE = "10.77.91.21"
NESTED_CONTAINER = "e" * 64

TOPOLOGY = f"""
networks: {{labtest-uplink: 10.77.90.0/24, labtest-site: 10.77.91.0/24}}
sites: [labtest-site]
hosts:
  labtest-central:
    debian: 12
    engine: true
    legs: {{labtest-uplink: {{address: {CENTRAL}, names: [store.edgeml.internal]}}}}
  labtest-mirror:
    debian: 12
    legs:
      labtest-site: {{address: {MIRROR}, names: [registry.edgeml.internal]}}
      labtest-uplink: {{address: 10.77.90.20}}
  labtest-device:
    debian: 13
    legs: {{labtest-site: {{address: {DEVICE}}}}}
    disk_mb: 64
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A running lab of three hosts, which goes down afterwards."""
    path = tmp_path_factory.mktemp("topology") / "labtest.yml"
    path.write_text(TOPOLOGY)
    with pristine_lab(Topology.load(path)) as lab:
        yield lab


# An open way is given the time that a busy machine takes; on a closed one nothing ever answers.
OPEN, CLOSED = 300, 3


def reaches(lab: Lab, host: str, target: str, seconds: int = OPEN) -> bool:
    """Tell whether a host can open a TCP connection to another host's SSH port within some seconds."""
    done = lab.run(host, f"timeout {seconds} bash -c '</dev/tcp/{target}/22'")
    assert done.returncode in (0, 1, 124), done.stderr
    return done.returncode == 0


def reaches_package_source(lab: Lab, host: str, seconds: int = OPEN) -> bool:
    """Tell whether apt can fetch its package lists within some seconds."""
    done = lab.run(host, f"sudo timeout --kill-after=1 {seconds} apt-get -q -o APT::Update::Error-Mode=any update")
    return done.returncode == 0


def started_at(lab: Lab) -> dict[str, str]:
    """Return when each host was switched on, by container id."""
    mine = network.labelled("labtest")
    return {str(found.id): found.attrs["State"]["StartedAt"] for found in lab.client.containers.list(filters=mine)}


def resolves(lab: Lab, host: str, name: str, seconds: int = OPEN) -> str:
    """Return the address that a host resolves a name to within some seconds, or nothing."""
    return lab.run(host, f"timeout {seconds} getent ahostsv4 {name} | head -n 1").stdout.partition(" ")[0]


@pytest.mark.lab
def test_hosts_boot_and_answer_over_ssh(lab: Lab) -> None:
    for name, host in lab.topology.hosts.items():
        engine = "sudo docker version --format '{{.Server.Os}}' || echo none"
        question = f"hostname; . /etc/os-release; echo $VERSION_ID; id -un; sudo id -un; {engine}"
        expected = [name, str(host.debian), "edge", "root", "linux" if host.engine else "none"]
        assert lab.run(name, question, check=True).stdout.split() == expected
        assert hosts.wait_until_booted(lab.access, host) <= hosts.TOLERATED_UNITS
    assert {row.state for row in lab.status()} == {"running"}


@pytest.mark.lab
def test_root_and_passwords_are_not_let_in(lab: Lab) -> None:
    host = lab.topology.host("labtest-device")
    as_root = [part.replace("edge@", "root@") for part in lab.access.command(host)]
    refused = subprocess.run([*as_root, "true"], capture_output=True, text=True)
    assert refused.returncode == 255
    assert "Permission denied (publickey)" in refused.stderr


@pytest.mark.lab
def test_up_again_changes_nothing(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    before = started_at(lab)
    lab.up()
    assert started_at(lab) == before
    assert "switched on" not in capsys.readouterr().out


@pytest.mark.lab
def test_arm64_programs_run_without_their_emulator_at_hand() -> None:
    flags = [line for line in (machine.BINFMT / "qemu-aarch64").read_text().splitlines() if line.startswith("flags")]
    assert "F" in flags[0]


@pytest.mark.lab
def test_the_kernel_has_room_for_the_hosts_of_all_labs(lab: Lab) -> None:
    del lab
    assert int(machine.INOTIFY.read_text()) >= machine.INOTIFY_INSTANCES


@pytest.mark.lab
def test_names_and_ways_of_a_connected_site(lab: Lab) -> None:
    assert resolves(lab, "labtest-mirror", "store.edgeml.internal") == CENTRAL
    assert resolves(lab, "labtest-device", "registry.edgeml.internal") == MIRROR
    assert resolves(lab, "labtest-device", "store.edgeml.internal", CLOSED) == ""
    assert reaches(lab, "labtest-mirror", CENTRAL)
    assert not reaches(lab, "labtest-device", CENTRAL, CLOSED), "a device must reach the centre through its mirror only"
    assert reaches_package_source(lab, "labtest-device")


@pytest.mark.lab
def test_cut_holds_through_a_power_cut_and_restore_ends_it(lab: Lab) -> None:
    host_key = lab.run("labtest-mirror", "cat /etc/ssh/ssh_host_ed25519_key.pub", check=True).stdout
    gateway = "10.77.91.1"
    lab.run("labtest-device", f"ping -c 1 -W {OPEN} {gateway}", check=True)

    lab.cut("labtest-site")
    lab.cut("labtest-site")
    lab.power_cut("labtest-mirror")
    assert [row.state for row in lab.status()] == ["running", "exited", "running"]
    lab.power_on("labtest-mirror")

    assert [row.cut for row in lab.status()] == [False, True, True]
    assert not reaches(lab, "labtest-mirror", CENTRAL, CLOSED)
    assert not reaches(lab, "labtest-central", MIRROR, CLOSED)
    assert resolves(lab, "labtest-mirror", "store.edgeml.internal", CLOSED) == ""
    ping = lab.run("labtest-device", f"ping -c 1 -W {CLOSED} {gateway}")
    assert ping.returncode != 0, "the site still reaches this machine"
    assert not reaches_package_source(lab, "labtest-device", 20)
    assert reaches(lab, "labtest-device", "registry.edgeml.internal")
    assert lab.run("labtest-mirror", "cat /etc/ssh/ssh_host_ed25519_key.pub", check=True).stdout == host_key

    lab.restore("labtest-site")
    lab.restore("labtest-site")
    assert not any(row.cut for row in lab.status())
    assert reaches(lab, "labtest-mirror", "store.edgeml.internal")
    assert reaches(lab, "labtest-central", "10.77.90.20")
    assert reaches_package_source(lab, "labtest-device")


@pytest.mark.lab
def test_disks_keep_their_content_through_a_power_cut(lab: Lab) -> None:
    paths = "/etc/kept /var/lib/docker/kept /var/lib/edgeml/kept"
    lab.run("labtest-device", f"echo kept | sudo tee {paths} && sync", check=True)
    lab.power_cut("labtest-device")
    lab.power_cut("labtest-device")
    assert lab.run("labtest-device", "true").returncode == 255
    lab.power_on("labtest-device")
    assert lab.run("labtest-device", f"cat {paths}", check=True).stdout == "kept\n" * 3


@pytest.mark.lab
def test_full_disk_refuses_a_byte_until_it_is_freed(lab: Lab) -> None:
    write = "echo x | sudo tee /var/lib/edgeml/one"
    lab.fill_disk("labtest-device")
    assert "No space left on device" in lab.run("labtest-device", write).stderr
    lab.free_disk("labtest-device")
    lab.run("labtest-device", write, check=True)
    with pytest.raises(FleetError, match="no disk of limited size"):
        lab.fill_disk("labtest-central")


@pytest.mark.lab
def test_a_host_of_another_description_is_not_taken_for_this_one(lab: Lab, tmp_path: Path) -> None:
    path = tmp_path / "labtest.yml"
    path.write_text(TOPOLOGY.replace("disk_mb: 64", "disk_mb: 65"))
    with pytest.raises(FleetError, match=r"another description.*labtest-device.*lab\.py down"):
        Lab(Topology.load(path)).up()


@pytest.mark.lab
def test_down_leaves_nothing_behind(lab: Lab) -> None:
    lab.cut("labtest-site")
    # What the engine of a host leaves in the kernel when the host loses power (cgroup v1).
    lab.run("labtest-device", f"sudo mkdir -p /var/lib/docker/containers/{NESTED_CONTAINER}", check=True)
    for controller in Path("/sys/fs/cgroup").glob("*/docker"):
        machine.run(["mkdir", "-p", controller / NESTED_CONTAINER / "child"], root=True)

    lab.down()

    mine = network.labelled("labtest")
    assert lab.client.containers.list(all=True, filters=mine) == []
    assert lab.client.networks.list(filters=mine) == []
    assert lab.client.volumes.list(filters=mine) == []
    assert lab.client.images.list(filters=mine) == []
    assert "labtest" not in machine.run(["iptables", "-S"], root=True)
    assert "labtest" not in machine.run(["losetup", "--list", "--noheadings", "--output", "BACK-FILE"], root=True)
    assert list(Path("/sys/fs/cgroup").glob(f"*/docker/{NESTED_CONTAINER}")) == []
    assert not lab.state.exists()
    assert {row.state for row in lab.status()} == {"absent"}
    with pytest.raises(FleetError, match="does not exist"):
        lab.power_on("labtest-device")


def test_inventory_lists_the_hosts_of_the_topology() -> None:
    ansible_inventory = str(Path(sys.executable).with_name("ansible-inventory"))
    command = [ansible_inventory, "-i", str(ROOT / "inventories/lab/10-hosts.yml"), "--list"]
    listed = json.loads(subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout)
    variables = listed["_meta"]["hostvars"]
    topology = Topology.named("fleet")
    assert {name: entry["ansible_host"] for name, entry in variables.items()} == {
        name: host.address for name, host in topology.hosts.items()
    }
    for site in topology.sites:
        members = {name for name, host in topology.hosts.items() if host.legs[0].network == site}
        assert set(listed[f"site_{site}"]["hosts"]) == members
        assert {variables[name]["edgeml_site"] for name in members} == {site}


def test_topologies_can_be_up_at_once() -> None:
    topologies = [Topology.load(path) for path in sorted(TOPOLOGIES.glob("*.yml"))]
    assert len(topologies) > 1
    for things in ("hosts", "networks"):
        names = [name for topology in topologies for name in getattr(topology, things)]
        assert len(names) == len(set(names))
    subnets = [subnet for topology in topologies for entry in topology.networks.values() for subnet in entry]
    assert len(subnets) == len(set(subnets))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("address: 10.77.91.21", "address: 10.77.99.21", "10.77.99.21 is not in 10.77.91.0/24"),
        ("address: 10.77.91.21", "address: 10.77.91.10", "10.77.91.10 is given twice"),
        ("debian: 13", "debian: 11", "debian must be one of"),
        ("disk_mb", "disk", "unknown keys"),
        ("sites: [labtest-site]", "sites: [paris]", "sites without a network"),
        ("sites: [labtest-site]", "sites: [labtest-uplink]", "the leg in its site must be the first"),
        ("hosts:", "servers:", "KeyError: 'hosts'"),
        ("networks: {", "networks: [", "ParserError"),
    ],
)
def test_unsound_topology_is_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = tmp_path / "unsound.yml"
    path.write_text(TOPOLOGY.replace(old, new))
    with pytest.raises(FleetError, match=message):
        Topology.load(path)


def test_unknown_topology_names_those_there_are() -> None:
    with pytest.raises(
        FleetError, match="choose one of: any_host, fleet, operations, roles, rollout, stick, three_sites"
    ):
        Topology.named("paris")
