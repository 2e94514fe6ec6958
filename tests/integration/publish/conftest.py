# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""An inventory with every kind of runtime and model source, and the registries that it publishes to and takes from."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.edgeml.fleet.plugins.module_utils._model.files import Model, Variant
from ansible_collections.edgeml.fleet.tests.integration.content.conftest import (  # noqa: F401
    authority,
    programs,
    running_store,
    store,
)
from ansible_collections.edgeml.fleet.tests.support.content import (
    ARCHITECTURES,
    REPOSITORY_ROOT,
    Authority,
    Store,
    publish_image,
    publish_model,
    write_model,
)

REGISTRY = "registry.edgeml.internal:5443"


@dataclass
class Run:
    code: int
    output: str

    @property
    def changed(self) -> int:
        found = re.search(r"^controller +: ok=\d+ +changed=(\d+)", self.output, re.MULTILINE)
        assert found, self.output
        return int(found[1])


@dataclass
class Project:
    """A directory with an inventory, and the store that it publishes to."""

    root: Path
    store: Store
    other: Store

    @property
    def lock_file(self) -> Path:
        return self.root / "inventory.lock.yml"

    def lock(self) -> dict[str, Any]:
        value: dict[str, Any] = yaml.safe_load(self.lock_file.read_text())
        return value

    def publish(self, *arguments: str, **variables: Any) -> Run:
        return self.run("publish", *arguments, **variables)

    def run(self, playbook: str, *arguments: str, **variables: Any) -> Run:
        variables = {
            "ansible_python_interpreter": sys.executable,
            "edgeml_build_directory": str(self.root / "build"),
            "edgeml_ca_certificate_file": self.store.ca_file,
            "edgeml_lock_file": str(self.lock_file),
            "edgeml_registry": REGISTRY,
            "model_store_try_models": False,  # the models of these tests are bytes that nothing loads
            "edgeml_store_address": self.store.address,
            "edgeml_store_username": self.store.username,
            "edgeml_store_password": self.store.password,
            "model_store_source_credentials": {
                self.other.address: {key: value for key, value in self.other.options().items() if key != "address"}
            },
            **variables,
        }
        command = [str(Path(sys.executable).with_name("ansible-playbook")), "-i", str(self.root / "inventory")]
        command += [f"edgeml.fleet.{playbook}", "--extra-vars", json.dumps(variables), *arguments]
        environment = {**os.environ, "ANSIBLE_LOCALHOST_WARNING": "false", "ANSIBLE_NOCOLOR": "1"}
        done = subprocess.run(command, cwd=self.root, capture_output=True, text=True, env=environment, check=False)
        assert self.store.password not in done.stdout + done.stderr
        return Run(done.returncode, done.stdout + done.stderr)

    def describe(self, catalogue: list[dict[str, Any]], runtimes: list[dict[str, Any]]) -> None:
        """Write the inventory."""
        (self.root / "inventory/group_vars").mkdir(parents=True, exist_ok=True)
        hosts = {"controllers": {"hosts": {"controller": {"ansible_connection": "local"}}}}
        (self.root / "inventory/hosts.yml").write_text(yaml.safe_dump(hosts))
        # As many inventories say it of all hosts; the controller may have no sudo.
        variables = {"edgeml_catalogue": catalogue, "edgeml_runtimes": runtimes, "ansible_become": True}
        variables["ansible_become_exe"] = "/nowhere/sudo"
        (self.root / "inventory/group_vars/all.yml").write_text(yaml.safe_dump(variables))


@pytest.fixture(scope="session")
def other(programs: Path, authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:  # noqa: F811
    """The registry of somebody else."""
    with running_store(programs, authority, tmp_path_factory.mktemp("other")) as found:
        yield found


def locked_wheels(*names: str) -> str:
    """Return the lines of a few small packages from this repository's own lock files."""
    files = (REPOSITORY_ROOT / "requirements" / name for name in ("runtime.txt", "development.txt"))
    lines = [line for file in files for line in file.read_text().replace("\\\n", "").splitlines()]
    return "".join(next(line for line in lines if line.startswith(f"{name}==")) + "\n" for name in names)


@pytest.fixture(scope="session")
def source(other: Store, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any], list[Any]]:
    """A directory that holds models, recipes and the lock of somebody else; the catalogue and runtimes of it."""
    root = tmp_path_factory.mktemp("source")
    write_model(root / "models/digits")
    (root / "models/digits/model.int8.onnx").write_bytes(b"a quarter of the bytes")
    write_model(root / "packed/vibration-2.0.1")
    with tarfile.open(root / "vibration.tar.gz", "w:gz") as archive:
        archive.add(root / "packed/vibration-2.0.1", "vibration-2.0.1")

    theirs = Model("scratches", "3.0.0", "onnxruntime_onnx", write_model(root / "theirs"), "model.onnx")
    scratches = publish_model(theirs, ARCHITECTURES, other.registry(), "vision/scratches")[1]
    (root / "theirs/model.int8.onnx").write_bytes(b"small")
    variants = {}
    for name, file, rest in (("fp32", "model.onnx", "model.int8.onnx"), ("int8", "model.int8.onnx", "model.onnx")):
        model = Model("dents", "1.0.0", "onnxruntime_onnx", root / "theirs", "model.onnx", Variant(name, file, (rest,)))
        variants[name] = publish_model(model, ARCHITECTURES, other.registry(), "edgeml/models/dents")[1]
    dents = {"dents": {"1.0.0": {"platform": "onnxruntime_onnx", "variants": variants}}}
    lock = {"serial": 4, "registry": other.address, "images": {}, "models": dents}
    (root / "other.lock.yml").write_text(yaml.safe_dump(lock))

    recipe = yaml.safe_load((REPOSITORY_ROOT / "runtime/image/image.yml").read_text())
    recipe["python"] |= {"requirements": "lock.txt", "exclude": {}}
    recipe["files"] = [{"source": "application", "target": "/opt/edgeml/app/application"}]
    (root / "application").mkdir()
    (root / "application/__init__.py").write_text("print('served')\n")
    (root / "image.yml").write_text(yaml.safe_dump(recipe))
    (root / "lock.txt").write_text(locked_wheels("hpack"))
    (root / "flavour.txt").write_text(locked_wheels("hpack", "packaging"))
    finished = publish_image(other, "library/server")

    runtimes = [
        {"name": "runtime", "recipe": "../image.yml"},
        {"name": "vision", "extends": "runtime", "requirements": "../flavour.txt", "ports": {"rest": 8010}},
        {"name": "server", "image": f"{other.address}/library/server@{finished.entry['digest']}", "server": {}},
    ]
    onnx = {"platform": "onnxruntime_onnx"}
    archive_digest = sha256((root / "vibration.tar.gz").read_bytes()).hexdigest()
    pair = [
        {"name": "int8", "file": "model.int8.onnx", "when": {"architecture": "arm64"}},
        {"name": "fp32", "file": "model.onnx"},
    ]
    catalogue = [
        {"name": "digits", "version": "1.1.0", **onnx, "source": "../models/digits", "variants": pair,
         "runtime": "vision", "requires": {"python": ["packaging>=20"]}},
        {"name": "vibration", "version": "2.0.1", **onnx,
         "source": {"url": (root / "vibration.tar.gz").as_uri(), "sha256": archive_digest}},
        {"name": "scratches", "version": "3.0.0", **onnx,
         "source": {"oci": f"{other.address}/vision/scratches@{scratches['digest']}"}},
        {"name": "dents", "version": "1.0.0", **onnx, "source": {"lock": "../other.lock.yml"},
         "variants": [{"name": "int8", "when": {"architecture": "arm64"}}, {"name": "fp32"}]},
    ]  # fmt: skip
    return root, catalogue, runtimes
