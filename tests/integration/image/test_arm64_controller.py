# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A controller of the other architecture makes the same digests: its Python, zlib and pip run here as arm64 programs.

Debian's own programs (mmdebstrap, dpkg-deb) stay this machine's: they only deliver packages that are checked by digest.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.edgeml.fleet.plugins.module_utils._image_base import fetch_packages, unpack_base
from ansible_collections.edgeml.fleet.plugins.module_utils._image_recipe import Base, parse_recipe
from ansible_collections.edgeml.fleet.tests.integration.content import support
from ansible_collections.edgeml.fleet.tests.integration.content.support import REPOSITORY_ROOT, Store
from ansible_collections.edgeml.fleet.tests.integration.image.conftest import Options, recipe, run_module
from ansible_collections.edgeml.fleet.tests.lab.machine import ensure_arm64_emulation, ensure_tools

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


class Arm64Controller:
    """Runs modules with Debian's arm64 Python, on this machine's files and network."""

    def __init__(self, root: Path) -> None:
        self._root = root
        packages = root.with_name("packages")
        base = parse_recipe(recipe("runtime/image/image.yml")).base
        assert isinstance(base, Base)
        unpack_base(base, fetch_packages(base, "arm64", packages), root)

    def python(self, *arguments: str) -> str:
        """Run the arm64 Python with the pure Python libraries of this environment; return what it printed."""
        # The emulator looks for the program's loader and libraries there, in child processes too.
        environment = {**os.environ, "QEMU_LD_PREFIX": str(self._root), "PYTHONPATH": sysconfig.get_path("purelib")}
        command = [str(self._root / "usr/bin/python3.13"), *arguments]
        ran = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
        assert ran.stdout, ran.stderr
        return ran.stdout

    def run_module(self, name: str, options: Options) -> dict[str, Any]:
        """Return a module's result."""
        arguments = self._root.with_name(f"{name}.json")
        arguments.write_text(json.dumps({"ANSIBLE_MODULE_ARGS": options}))
        module = f"ansible_collections.edgeml.fleet.plugins.modules.{name}"
        result: dict[str, Any] = json.loads(self.python("-m", module, str(arguments)))
        assert not result.get("failed"), result
        return result


@pytest.fixture(scope="module")
def controller(tmp_path_factory: pytest.TempPathFactory) -> Arm64Controller:
    ensure_tools()
    ensure_arm64_emulation()
    found = Arm64Controller(tmp_path_factory.mktemp("arm64") / "root")
    assert found.python("-c", "import platform; print(platform.machine())").strip() == "aarch64"
    return found


def test_the_mirrors_image(
    mirror_image: tuple[Options, dict[str, Any]], controller: Arm64Controller, tmp_path: Path
) -> None:
    options, here = mirror_image
    there = controller.run_module("oci_image", {"recipe": options["recipe"], "cache": str(tmp_path / "cache")})
    assert there["image"] == here["image"]


def test_an_image_with_python(controller: Arm64Controller, tmp_path: Path) -> None:
    """The bytecode is made by the image's Python for the controller's architecture, so by two different programs."""
    python = recipe("runtime/image/image.yml")
    lock = (REPOSITORY_ROOT / "requirements/runtime.txt").read_text().replace("\\\n", "")
    few = [line for line in lock.splitlines() if line.startswith(("hpack==", "httptools==", "orjson=="))]
    (tmp_path / "lock.txt").write_text("\n".join(few))  # all of them would take minutes under emulation
    python["python"] |= {"requirements": str(tmp_path / "lock.txt"), "exclude": {}}
    options = {"recipe": python, "source_root": str(REPOSITORY_ROOT)}
    here = run_module({**options, "cache": str(tmp_path / "here")})
    there = controller.run_module("oci_image", {**options, "cache": str(tmp_path / "there")})
    assert there["image"] == here["image"]


def test_a_model(controller: Arm64Controller, store: Store) -> None:
    options = {
        "name": "photo",
        "version": "1.0.0",
        "platform": "python",
        "source": str(REPOSITORY_ROOT / "models" / "photo"),
        "registry": store.options(),
    }
    here = support.run_module("model_artifact", {**options, "repository": "here"}, interpreter=sys.executable)
    there = controller.run_module("model_artifact", {**options, "repository": "there"})
    for key in ("digest", "index", "platforms", "blob", "golden_cases"):
        assert there[key] == here[key], key
