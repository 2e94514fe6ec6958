# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The example of docs/testing-your-role.md: the project of somebody else, with this collection installed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.edgeml.fleet.tests.lab.lab import Lab, pristine_lab
from ansible_collections.edgeml.fleet.tests.lab.topology import Topology
from ansible_collections.edgeml.fleet.tests.support.installed import install

from .conftest import ROOT, molecule_test

HOST = "role-debian12"

pytestmark = [pytest.mark.lab, pytest.mark.timeout(3600)]


@pytest.fixture
def lab() -> Iterator[Lab]:
    with pristine_lab(Topology.named("roles")) as lab:
        yield lab


def test_another_project_tests_its_role(lab: Lab, tmp_path: Path) -> None:
    project = tmp_path / "project"
    shutil.copytree(ROOT / "docs" / "examples" / "own_role", project)
    install(tmp_path / "collections")
    molecule_test(
        project,
        steps=("prepare", "check", "converge", "idempotence", "verify", "cleanup"),
        TEST_HOST=lab.topology.host(HOST).address,
        ANSIBLE_COLLECTIONS_PATH=str(tmp_path / "collections"),
        ANSIBLE_REMOTE_USER="edge",
        ANSIBLE_PRIVATE_KEY_FILE=str(lab.state / "id_ed25519"),
        ANSIBLE_SSH_COMMON_ARGS=f"-o UserKnownHostsFile={lab.state / 'known_hosts'} -o IdentitiesOnly=yes",
    )
    assert lab.run(HOST, "command -v dockerd || sudo ls /var/lib/edgeml").returncode != 0, "cleanup left something"
