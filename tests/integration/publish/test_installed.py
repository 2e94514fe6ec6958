# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The built collection, installed away from this checkout, with the quickstart's inventory copied beside it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from ansible_collections.edgeml.fleet.tests.support.content import (
    Store,
    take_built_layers,
)
from ansible_collections.edgeml.fleet.tests.support.installed import install

from .conftest import Project, Run

pytestmark = pytest.mark.timeout(900)


class Installed(Project):
    """A project that knows the collection only as it was installed."""

    def run(self, playbook: str, *arguments: str, **variables: object) -> Run:
        os.environ["ANSIBLE_COLLECTIONS_PATH"] = str(self.root / "collections")
        try:
            return super().run(playbook, *arguments, **variables)
        finally:
            del os.environ["ANSIBLE_COLLECTIONS_PATH"]

    def files(self) -> list[str]:
        """Return what runs have written."""
        paths = (path.relative_to(self.root) for path in self.root.rglob("*") if path.is_file())
        return sorted(str(path) for path in paths if path.parts[0] not in ("inventory", "collections"))


@pytest.fixture(scope="module")
def project(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    root = tmp_path_factory.mktemp("installed")
    collection = install(root / "collections")
    shutil.copytree(collection / "inventories/quickstart", root / "inventory")
    return Installed(root, store, store)


def test_check_mode_writes_nothing_on_a_fresh_machine(project: Installed) -> None:
    """Neither images' caches, nor a password, nor a certificate, and yet each file is predicted."""
    command = [str(Path(sys.executable).with_name("ansible-playbook")), "-i", "inventory", "--check", "--diff"]
    command += ["--extra-vars", f"edgeml_build_directory={project.root}/build"]
    command += ["--extra-vars", f"edgeml_lock_file={project.lock_file}"]
    command += ["edgeml.fleet.certificates", "edgeml.fleet.publish"]
    done = subprocess.run(
        command, cwd=project.root, capture_output=True, text=True, check=False,
        env={**os.environ, "ANSIBLE_COLLECTIONS_PATH": str(project.root / "collections"), "HOME": str(project.root)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the certificate" in done.stdout
    assert "this_machine.crt" in done.stdout
    assert "+registry: registry.edgeml.internal:5443" in done.stdout
    assert [name for name in project.files() if not name.startswith(".ansible/")] == []


def test_an_installed_collection_publishes(project: Installed) -> None:
    """Its own runtime, from the recipe and the sources that came with it, and a model of the collection."""
    take_built_layers(project.root / "build/images")
    photo = {"name": "photo", "version": "1.0.0", "platform": "python", "source": "edgeml.fleet:models/photo"}
    only = {"edgeml_catalogue": [photo], "edgeml_architectures": ["amd64"]}
    run = project.publish(**only)
    assert run.code == 0, run.output
    lock = yaml.safe_load(project.lock_file.read_text())
    assert set(lock["images"]) == {"runtime", "mirror"}
    assert lock["models"]["photo"]["1.0.0"]["variants"]["default"]["golden_cases"] == 2
    assert project.publish(**only).changed == 0


def test_a_run_without_a_controller_says_that_nothing_was_published(project: Installed, tmp_path: Path) -> None:
    """As a slice of a job has it: the groups are there, without their hosts."""
    hosts = yaml.safe_load((project.root / "inventory/10-hosts.yml").read_text())
    hosts["all"]["children"]["controllers"] = {}
    (tmp_path / "inventory").mkdir()
    (tmp_path / "inventory/10-hosts.yml").write_text(yaml.safe_dump(hosts))
    (tmp_path / "collections").symlink_to(project.root / "collections")
    run = Installed(tmp_path, project.store, project.store).run("publish")
    assert run.code != 0
    words = " ".join(re.sub(r'[\\"]', "", run.output).split())
    assert "Nothing was published" in words
    assert "in a job template without slices" in words
