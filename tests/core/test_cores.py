# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The collection with each ansible-core that it supports, and what older ones say.

Each has a virtual environment of its own. The unit tests run on the checkout, all else on the built archive, installed
beside an inventory as a user has it, without any setting of this repository.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.edgeml.fleet.tests.support.cores import CORES, ROOT, Core, environment
from ansible_collections.edgeml.fleet.tests.support.installed import install

SUPPORTED = [core for core in CORES if core.supported]
REFUSED = [core for core in CORES if not core.supported]
PLAYBOOKS = sorted(f"edgeml.fleet.{path.stem}" for path in (ROOT / "playbooks").glob("*.yml"))
#: An inventory without the plugin.
HOSTS = """\
all:
  vars: {ansible_connection: local}
  children:
    controllers: {hosts: {controller: {}}}
    stores: {hosts: {server: {}}}
    mirrors: {hosts: {server: {}}}
    devices: {hosts: {board: {}}}
"""
# Objectives that any machine meets, however busy it is.
RELAXED = {"edgeml_model_overrides": {name: {"slo": {"p95_ms": 60000}} for name in ("digits", "file_type")}}

pytestmark = pytest.mark.timeout(1800)
each_supported = pytest.mark.parametrize("core", SUPPORTED, ids=[core.version for core in SUPPORTED])
each_refused = pytest.mark.parametrize("core", REFUSED, ids=[core.version for core in REFUSED])


@pytest.fixture(scope="session")
def collections(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Where the archive is installed, and the collections that it needs."""
    directory = tmp_path_factory.mktemp("collections")
    install(directory)
    return os.pathsep.join([str(directory), sysconfig.get_path("purelib")])


@pytest.fixture(scope="session")
def fleet(tmp_path_factory: pytest.TempPathFactory, collections: str) -> Path:
    """A user's directory, with the inventories that the collection brings and one without the plugin."""
    directory = tmp_path_factory.mktemp("fleet")
    installed = Path(collections.partition(os.pathsep)[0], "ansible_collections", "edgeml", "fleet")
    shutil.copytree(installed / "inventories" / "quickstart", directory / "inventories" / "mine")
    (directory / "inventories" / "plain.yml").write_text(HOSTS)
    return directory


def ansible(
    programs: Path, fleet: Path, collections: str, *command: str, **more: str
) -> subprocess.CompletedProcess[str]:
    """Return what a program of Ansible said in the user's directory."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")}
    paths = {"ANSIBLE_COLLECTIONS_PATH": collections, "PATH": f"{programs}:{own['PATH']}", "COLUMNS": "1000"}
    return subprocess.run(
        [programs / command[0], *command[1:]],
        cwd=fleet, env={**own, **paths, **more}, capture_output=True, text=True, check=False,
    )  # fmt: skip


def said(done: subprocess.CompletedProcess[str]) -> str:
    """Return a program's output, if it ended well."""
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-6000:]
    return done.stdout


@each_supported
def test_unit_tests(core: Core) -> None:
    python = environment(core) / "bin" / "python"
    release = subprocess.run(
        [python, "-c", "import ansible.release; print(ansible.release.__version__)"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert release.stdout.strip() == core.version
    options = ["-q", "--numprocesses", "2", "--dist", "loadfile", "-p", "no:cacheprovider", "--tb=short"]
    done = subprocess.run(
        [python, "-m", "pytest", *options, "tests/unit/plugins", "tests/unit/roles", "tests/integration/host_state"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-8000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed
    assert int(passed[1]) > 1000
    assert "failed" not in done.stdout


@each_supported
def test_inventory_is_the_same_with_each(core: Core, fleet: Path, collections: str) -> None:
    def listed(programs: Path) -> Any:
        done = ansible(programs, fleet, collections, "ansible-inventory", "-i", "inventories/mine", "--list")
        return json.loads(said(done))

    ours = listed(environment(core) / "bin")
    assert [model["name"] for model in ours["_meta"]["hostvars"]["this_machine"]["edgeml_catalogue"]]
    assert ours == listed(Path(sys.executable).parent)


@each_supported
def test_every_playbook_can_be_read(core: Core, fleet: Path, collections: str) -> None:
    programs = environment(core) / "bin"
    command = ["ansible-playbook", "-i", "inventories/mine", "--list-tasks", *PLAYBOOKS]
    done = ansible(programs, fleet, collections, *command)
    assert said(done).count("playbook: ") == len(PLAYBOOKS)
    assert "does not support" not in done.stderr
    assert "deprecat" not in done.stderr.lower(), done.stderr


@pytest.fixture
def quickstart(fleet: Path) -> list[str]:
    """The beginning of a command on the machine itself; what was built before need not be built again."""
    variables = {"edgeml_build_directory": f"{ROOT}/build", "edgeml_state_directory": f"{fleet}/state", **RELAXED}
    return ["ansible-playbook", "-i", "inventories/mine", f"--extra-vars={json.dumps(variables)}"]


@pytest.fixture
def clean_machine(quickstart: list[str], fleet: Path, collections: str) -> Iterator[None]:
    """Nothing of the quickstart is left afterwards, whatever happened; the engine stays, it is the lab's as well."""
    yield
    command = [*quickstart, "edgeml.fleet.remove", "--skip-tags", "engine"]
    said(ansible(Path(sys.executable).parent, fleet, collections, *command))


@each_supported
@pytest.mark.usefixtures("clean_machine")
def test_quickstart(core: Core, quickstart: list[str], fleet: Path, collections: str) -> None:
    """Store, mirror and device on this machine; a second run changes nothing."""
    command = [*quickstart, "edgeml.fleet.quickstart"]
    programs = environment(core) / "bin"
    first = said(ansible(programs, fleet, collections, *command))
    assert re.search(r"digits +1\.0\.0 +10 of 10 real inputs recognised", first)
    again = ansible(programs, fleet, collections, *command)
    assert re.findall(r"^\S+ +: ok=\d+ +changed=(\d+)", said(again), re.MULTILINE) == ["0", "0"]
    assert "deprecat" not in again.stderr.lower(), again.stderr


@each_refused
def test_older_ones_are_refused(core: Core, fleet: Path, collections: str) -> None:
    programs = environment(core) / "bin"
    line = f"edgeml.fleet needs ansible-core 2.19 or newer, {core.version} was seen (Python: {programs}/"
    strict = {"ANSIBLE_INVENTORY_ANY_UNPARSED_IS_FAILED": "true"}
    inventory = ansible(programs, fleet, collections, "ansible-inventory", "-i", "inventories/mine", "--list", **strict)
    assert inventory.returncode != 0
    assert line in inventory.stderr
    for playbook in ("certificates", "preflight", "store", "verify"):
        command = ["ansible-playbook", "-i", "inventories/plain.yml", "--check", f"edgeml.fleet.{playbook}"]
        done = ansible(programs, fleet, collections, *command)
        assert done.returncode != 0
        assert line in done.stdout + done.stderr, done.stdout + done.stderr
        assert "probably a bug" not in done.stderr
