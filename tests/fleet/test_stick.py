# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A site of bare Debian 12 and 13 hosts that never had an uplink, from one directory on a stick."""

from __future__ import annotations

import subprocess
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest

from .conftest import Fleet, running_lab

pytestmark = [pytest.mark.lab, pytest.mark.timeout(1800)]

HOSTS = ("stick-mirror", "stick-device")
DIGITS = [str(digit) for digit in range(10)]
STICK = "/media/stick"
ADDRESS = "https://registry.edgeml.internal:5443/packages"


@pytest.fixture(scope="module")
def fleet(request: pytest.FixtureRequest) -> Iterator[Fleet]:
    """The lab with everything published and exported, the stick in the mirror's host, and the site cut off."""
    with running_lab(request, "stick") as lab:
        fleet = Fleet(lab, (Path(__file__).with_name("stick_lab"),))
        lab.cut("stick-site")
        if not fleet.lock_file.exists():
            fleet.publish().must_succeed()
        bundle = stick(fleet)
        fleet.playbook("edgeml.fleet.bundle_export", "-e", f"edgeml_bundle={bundle}").must_succeed()
        lab.run("stick-mirror", f"sudo mkdir -p {STICK}", check=True)
        subprocess.run(["docker", "cp", bundle, f"edgeml-lab-stick-mirror:{STICK}"], check=True)
        yield fleet


@pytest.fixture(scope="module")
def in_use(fleet: Fleet) -> Fleet:
    """The same, converged from the stick, which is pulled out then."""
    if not all(map(fleet.converged, HOSTS)):
        for host in HOSTS:
            assert fleet.lab.run(host, "command -v docker").returncode != 0
            assert fleet.lab.run(host, "curl --max-time 3 --insecure https://10.77.90.10:5000").returncode != 0
        fleet.playbook("edgeml.fleet.site", "-e", f"edgeml_bundle={STICK}/bundle").must_succeed()
    fleet.lab.run("stick-mirror", f"sudo rm -rf {STICK}/bundle", check=True)
    return fleet


def stick(fleet: Fleet) -> Path:
    return fleet.state / "stick" / "bundle"


def test_both_serve(in_use: Fleet) -> None:
    for host in HOSTS:
        assert in_use.check(host, ["digits"]) == {"https digits": DIGITS, "grpcs digits": DIGITS}


def test_the_second_run_changes_nothing(in_use: Fleet) -> None:
    """Without the stick, as on any day."""
    run = in_use.playbook("edgeml.fleet.site").must_succeed()
    assert {host: run.changed[host] for host in HOSTS} == dict.fromkeys(HOSTS, 0), run.output[-4000:]


def test_apt_on_the_device_takes_what_is_signed_alone(in_use: Fleet) -> None:
    """Its own sources are as they were, and none of them answers."""
    device = "stick-device"
    own = "-o Dir::Etc::SourceList=/etc/apt/sources.list.d/edgeml.sources -o Dir::Etc::SourceParts=/dev/null"
    in_use.lab.run(device, f"sudo apt-get {own} update", check=True)
    policy = in_use.lab.run(device, "apt-cache policy docker.io", check=True).stdout
    assert f"{ADDRESS}/trixie ./ Packages" in policy
    # What somebody changes on the mirror's disk afterwards reaches no host.
    index = "/var/lib/edgeml/mirror/packages/trixie/Packages"
    in_use.lab.run("stick-mirror", f"sudo cp {index} /var/tmp/Packages && echo | sudo tee -a {index}", check=True)
    refused = in_use.lab.run(device, f"sudo rm -rf /var/lib/apt/lists/* && sudo apt-get {own} update")
    in_use.lab.run("stick-mirror", f"sudo cp /var/tmp/Packages {index}", check=True)
    assert refused.returncode != 0
    assert (
        "Hash Sum mismatch" in refused.stdout + refused.stderr or "unexpected size" in refused.stdout + refused.stderr
    )


def test_a_controller_comes_from_the_stick(fleet: Fleet, tmp_path: Path) -> None:
    """As README.txt on it says, without any index."""
    venv.create(tmp_path / "edgeml", with_pip=True)
    bundle, programs = stick(fleet), tmp_path / "edgeml/bin"
    pip: list[str | Path] = [
        programs / "pip",
        "install",
        "--no-index",
        "--find-links",
        "controller/wheels",
        "--require-hashes",
    ]
    subprocess.run([*pip, "-r", "controller/requirements.txt"], cwd=bundle, check=True)
    (archive,) = (bundle / "controller").glob("edgeml-fleet-*.tar.gz")
    target = str(tmp_path / "collections")
    galaxy = [str(programs / "ansible-galaxy"), "collection", "install", "--no-deps", "-p", target, str(archive)]
    subprocess.run(galaxy, check=True)
    environment = {"PATH": f"{programs}:/usr/bin:/bin", "ANSIBLE_COLLECTIONS_PATH": target}
    done = subprocess.run(
        [programs / "ansible-playbook", "-i", "localhost,", "--syntax-check", "edgeml.fleet.site"],
        cwd=tmp_path, env={**environment, "HOME": str(tmp_path)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert str(archive.relative_to(bundle)) in (bundle / "README.txt").read_text()


def test_the_hosts_own_sources_come_back(in_use: Fleet) -> None:
    in_use.playbook("edgeml.fleet.site", "-e", "edgeml_package_source=host", "--limit", "stick-device").must_succeed()
    left = in_use.lab.run("stick-device", "ls /etc/apt/sources.list.d /etc/apt/apt.conf.d", check=True).stdout
    assert "edgeml" not in left
