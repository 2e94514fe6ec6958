# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A controller of the other architecture makes the same digests: its Python, zlib and pip run here as arm64 programs.

Debian's own programs (mmdebstrap, dpkg-deb) stay this machine's: they only deliver packages that are checked by digest.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.edgeml.fleet.plugins.module_utils._image import python as _image_python
from ansible_collections.edgeml.fleet.plugins.module_utils._image.layer import unpack
from ansible_collections.edgeml.fleet.plugins.module_utils._image.python import Interpreter
from ansible_collections.edgeml.fleet.tests.integration.image.conftest import PythonImage
from ansible_collections.edgeml.fleet.tests.lab.machine import prepare
from ansible_collections.edgeml.fleet.tests.support.content import REPOSITORY_ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

# What the modules oci_image and model_artifact do before they push; prints what the lock would say.
PUBLISH = """
import json, platform, shutil, sys
from pathlib import Path
from ansible_collections.edgeml.fleet.plugins.module_utils._image.assembly import Assembly
from ansible_collections.edgeml.fleet.plugins.module_utils._image.cache import LayerCache
from ansible_collections.edgeml.fleet.plugins.module_utils._image.layer import write_layer
from ansible_collections.edgeml.fleet.plugins.module_utils._image.python import Interpreter
from ansible_collections.edgeml.fleet.plugins.module_utils._image.recipe import parse_recipe
from ansible_collections.edgeml.fleet.plugins.module_utils._model.artifact import describe_model
from ansible_collections.edgeml.fleet.plugins.module_utils._model.files import Model

recipe, source, model, root, cache = json.loads(sys.argv[1])
layers = LayerCache(Path(cache))
with layers.locked(), layers.work_directory() as work:
    image = Assembly(parse_recipe(recipe), Path(source), layers, None, work).image(["amd64", "arm64"])
    shutil.copytree(source, work / "python")
    Interpreter(Path(root), "3.13").compile(work / "python", ["application"])
    python = write_layer(work / "python", work / "layer")
photo = Model("photo", "1.0.0", "python", Path(model), "model.py")
print(json.dumps({
    "machine": platform.machine(),
    "image": image.lock_entry("edgeml/test"),
    "bytecode": python.digest,
    "model": describe_model(photo, ["amd64", "arm64"], "edgeml/models/photo")[0],
}))
"""


def publish(python: Path, arguments: list[Any], **environment: str) -> dict[str, Any]:
    """Run PUBLISH with a Python; return what it says."""
    command = [str(python), "-c", PUBLISH, json.dumps(arguments)]
    ran = subprocess.run(command, env=os.environ | environment, check=False, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    result: dict[str, Any] = json.loads(ran.stdout)
    return result


@pytest.fixture(scope="module")
def roots(python_image: PythonImage, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with the runtime's base for each architecture, which this machine can run.

    Its bytecode is in place: emulated, making it would take half a minute at each start.
    """
    prepare()
    directory = tmp_path_factory.mktemp("roots")
    for architecture in ("amd64", "arm64"):
        (directory / architecture).mkdir()
        with tarfile.open(python_image.base(architecture)) as layer:
            unpack(layer, directory / architecture)
    return directory


def test_an_arm64_controller_makes_the_same_digests(roots: Path, tmp_path: Path) -> None:
    """Debian packages, files, bytecode made by the image's Python for the controller's architecture, a model."""
    model = REPOSITORY_ROOT / "models" / "photo"
    application = tmp_path / "source" / "application"
    shutil.copytree(model, application)
    shutil.copy(roots / "amd64/usr/lib/python3.13/functools.py", application)
    # Without Python in the image: its standard library takes minutes to compile under emulation.
    image = {
        "base": {"suite": "trixie", "packages": ["base-files", "zlib1g"]},
        "files": [{"source": "application", "target": "/opt/application"}],
        "config": {"user": "65532", "entrypoint": ["/x"]},
    }
    arguments = {
        architecture: [
            image,
            *map(str, (application.parent, model, roots / architecture, tmp_path / f"{architecture}-cache")),
        ]
        for architecture in ("amd64", "arm64")
    }
    here = publish(Path(sys.executable), arguments["amd64"])
    # The emulator looks for loader and libraries of the program, and of its child processes, below QEMU_LD_PREFIX.
    libraries = {"QEMU_LD_PREFIX": str(roots / "arm64"), "PYTHONPATH": sysconfig.get_path("purelib")}
    there = publish(roots / "arm64/usr/bin/python3.13", arguments["arm64"], **libraries)
    assert there.pop("machine") == "aarch64" != here.pop("machine")
    assert there == here


def test_bytecode_does_not_depend_on_what_else_the_process_holds(
    roots: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pythons of different architectures do not hold the same strings, and the compiler looks at them."""
    source = "def outer():\n    class Inner:\n        pair = ('e f', 2.5)\n    return Inner\n"
    program = _image_python.COMPILE
    written: list[bytes] = []
    for held in ("", "import sys; held = [sys.intern(text) for text in ('outer.<locals>.Inner', 'e f')]\n"):
        module = tmp_path / str(len(written)) / "module.py"
        module.parent.mkdir()
        module.write_text(source)
        monkeypatch.setattr(_image_python, "COMPILE", held + program)
        Interpreter(roots / "amd64", "3.13").compile(module.parent, ["."])
        (bytecode,) = module.parent.glob("__pycache__/*.pyc")
        written.append(bytecode.read_bytes())
    assert written[0] == written[1]
