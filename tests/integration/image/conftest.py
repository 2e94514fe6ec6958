# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fixtures of the image tests: the content tests' registry, images from real Debian packages, a container engine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.edgeml.fleet.tests.integration.content.conftest import (  # noqa: F401
    authority,
    programs,
    store,
)
from ansible_collections.edgeml.fleet.tests.support.content import REPOSITORY_ROOT, take_built_layers

Options = dict[str, Any]


def recipe(path: str) -> dict[str, Any]:
    """Return a recipe of this repository."""
    value: dict[str, Any] = yaml.safe_load((REPOSITORY_ROOT / path).read_text())
    return value


def run_module(options: Options, *, check: bool = False) -> dict[str, Any]:
    """Run oci_image as a playbook does, with the Python that runs Ansible; return its result, failed or not."""
    command = [str(Path(sys.executable).parent / "ansible"), "localhost", "--inventory", "localhost,"]
    command += ["--connection", "local", "--extra-vars", f"ansible_python_interpreter={sys.executable}"]
    command += ["--module-name", "edgeml.fleet.oci_image", "--args", json.dumps(options)] + ["--check"] * check
    environment = {**os.environ, "ANSIBLE_LOAD_CALLBACK_PLUGINS": "1", "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json"}
    ran = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    result: dict[str, Any] = json.loads(ran.stdout)["plays"][0]["tasks"][0]["hosts"]["localhost"]
    for key in ("invocation", "_ansible_no_log", "action", "warnings", "deprecations"):
        result.pop(key, None)
    return result


@pytest.fixture(scope="session")
def mirror_image(tmp_path_factory: pytest.TempPathFactory) -> tuple[Options, dict[str, Any]]:
    """The options and the result of building the mirror's image from nothing."""
    directory = tmp_path_factory.mktemp("mirror-image")
    options = {
        "recipe": recipe("roles/site_mirror/files/image.yml"),
        "cache": str(directory / "cache"),
        "archive": {"path": str(directory / "image.tar"), "architecture": "amd64", "name": "edgeml-test/mirror:built"},
    }
    return options, run_module(options)


@dataclass(frozen=True)
class PythonImage:
    """An image for Python with a few wheels and a small application upon the runtime's base, for both architectures."""

    recipe: dict[str, Any]
    source: Path
    cache: Path
    archive: Path
    result: dict[str, Any]

    def base(self, architecture: str) -> Path:
        """Return the lowest layer, the runtime's base with its bytecode."""
        digest: str = self.result["layers"][architecture][0]["digest"]
        return self.cache / "blobs" / digest.removeprefix("sha256:")


@pytest.fixture(scope="session")
def python_image(tmp_path_factory: pytest.TempPathFactory) -> PythonImage:
    """Build it; its base is the one of build/images where that is built already."""
    directory = tmp_path_factory.mktemp("python-image")
    made = recipe("runtime/image/image.yml")
    lock = (REPOSITORY_ROOT / "requirements/runtime.txt").read_text().replace("\\\n", "")
    wanted = ("hpack==", "httptools==", "orjson==")
    source = directory / "source"
    (source / "application").mkdir(parents=True)
    (source / "lock.txt").write_text("\n".join(line for line in lock.splitlines() if line.startswith(wanted)))
    (source / "application" / "__init__.py").write_text(
        "import sys, asyncio, hpack, httptools, orjson\n"
        "assert sys.dont_write_bytecode\n"
        "modules = (sys.modules[__name__], hpack, httptools, orjson, sys.modules['asyncio'])\n"
        "print(orjson.__version__, *(module.__cached__ for module in modules))\n"
    )
    made["python"] |= {"requirements": "lock.txt", "exclude": {}}
    made["files"] = [{"source": "application", "target": "/opt/edgeml/app/application"}]
    cache, archive = directory / "cache", directory / "image.tar"
    take_built_layers(cache)
    options = {
        "recipe": made,
        "source_root": str(source),
        "cache": str(cache),
        "archive": {"path": str(archive), "architecture": "amd64", "name": "edgeml-test/python:built"},
    }
    return PythonImage(made, source, cache, archive, run_module(options))


@pytest.fixture
def container() -> Iterator[Callable[..., str]]:
    """Return a function that loads an archive and runs its image as a container is run on a device."""
    loaded: list[str] = []

    def run(archive: Path, name: str, *arguments: str, entrypoint: str) -> str:
        subprocess.run(["docker", "load", "--input", archive], check=True, capture_output=True)
        loaded.append(name)
        restrictions = ["--read-only", "--network=none", "--cap-drop=ALL", "--security-opt=no-new-privileges"]
        command = ["docker", "run", "--rm", *restrictions, f"--entrypoint={entrypoint}", name, *arguments]
        ran = subprocess.run(command, check=False, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr
        return ran.stdout + ran.stderr

    yield run
    for name in loaded:
        subprocess.run(["docker", "rmi", "--force", name], check=True, capture_output=True)
