# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The execution environment, built where no registry can be reached, at work."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import docker
import pytest
import yaml
from ansible_collections.edgeml.fleet.tests.lab.lab import Lab, pristine_lab
from ansible_collections.edgeml.fleet.tests.lab.topology import Topology
from ansible_collections.edgeml.fleet.tests.support.installed import ROOT, build
from docker.errors import ImageNotFound

IMAGE = "edgeml-fleet-ee:test"
BASE = "edgeml-fleet-ee-base:test"
COLLECTION = "/usr/share/ansible/collections/ansible_collections/edgeml/fleet"
HOST = "role-debian12"
# What debian:trixie-slim is, with the authorities that this machine trusts beside Debian's.
AUTHORITIES = "/usr/local/share/ca-certificates"
TRUST = f'cp -r {AUTHORITIES}/. "$1"{AUTHORITIES} && chroot "$1" update-ca-certificates'

pytestmark = [pytest.mark.lab, pytest.mark.timeout(3600)]


def run(*command: str | Path, cwd: Path | None = None) -> str:
    done = subprocess.run(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout[-8000:]
    return done.stdout


def remove_images() -> None:
    """Remove the image, its base, and what the stages of the build have left, which are without a name."""
    engine = docker.from_env()
    (layer,) = engine.images.get(BASE).attrs["RootFS"]["Layers"]
    unnamed = engine.images.list(filters={"dangling": True})
    stages = [found.id or "" for found in unnamed if layer in found.attrs["RootFS"]["Layers"]]
    for name in (IMAGE, *stages, BASE):
        with suppress(ImageNotFound):
            engine.images.remove(name, force=True)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The image, made by ansible-builder from the built collection and a base of Debian packages."""
    project = tmp_path_factory.mktemp("execution_environment")
    for name in ("execution-environment.yml", "meta/ee-requirements.txt", "meta/ee-bindep.txt"):
        (project / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, project / name)
    (project / "build/release").mkdir(parents=True)
    build(project / "build/release")
    root = project / "base.tar"
    options = ["--mode=root", "--variant=minbase", "--include=ca-certificates", f"--customize-hook={TRUST}"]
    run("mmdebstrap", *options, "trixie", root)
    run("docker", "import", root, BASE)
    root.unlink()
    builder = Path(sys.executable).with_name("ansible-builder")
    options = ["--container-runtime", "docker", "--build-arg", f"EE_BASE_IMAGE={BASE}", "--tag", IMAGE]
    try:
        run(builder, "build", "--verbosity", "3", *options, cwd=project)
        yield IMAGE
    finally:
        remove_images()


@pytest.fixture
def lab() -> Iterator[Lab]:
    with pristine_lab(Topology.named("roles")) as lab:
        yield lab


def test_it_has_the_ansible_that_is_tested(image: str) -> None:
    said = run("docker", "run", "--rm", image, "ansible-playbook", "--version")
    tested = run(Path(sys.executable).with_name("ansible-playbook"), "--version")
    assert said.splitlines()[0] == tested.splitlines()[0]


def test_it_reads_an_inventory_with_the_plugin(image: str) -> None:
    inventory = f"{COLLECTION}/inventories/quickstart"
    command = ["docker", "run", "--rm", "--network", "none", image, "ansible-inventory", "-i", inventory, "--list"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    listed = json.loads(done.stdout)
    assert listed["model_digits"]["hosts"] == ["this_machine"]


def test_it_converges_a_host_over_ssh(image: str, lab: Lab) -> None:
    inventory = {
        "devices": {
            "hosts": {HOST: {"ansible_host": lab.topology.host(HOST).address}},
            "vars": {
                "ansible_user": "edge",
                "ansible_ssh_private_key_file": "/lab/id_ed25519",
                "ansible_ssh_common_args": "-o UserKnownHostsFile=/lab/known_hosts -o IdentitiesOnly=yes",
            },
        }
    }
    (lab.state / "hosts.yml").write_text(yaml.safe_dump(inventory))
    # As the owner of SSH's key, which nobody else may read.
    command = ["docker", "run", "--rm", "--user", f"{os.getuid()}:0", "--network", "host"]
    command += ["--volume", f"{lab.state}:/lab", image]
    command += ["ansible-playbook", "-i", "/lab/hosts.yml", f"{COLLECTION}/docs/examples/docker_engine.yml"]
    assert "failed=0" in run(*command)
    assert "changed=0" in run(*command)
    assert lab.run(HOST, "sudo docker info").returncode == 0
