# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A controller of the other architecture makes the same digests: its Python, zlib and pip run here as arm64 programs.

Debian's own programs (mmdebstrap, dpkg-deb) stay this machine's: they only deliver packages that are checked by digest.
"""

from __future__ import annotations

import hashlib
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
from ansible_collections.edgeml.fleet.tests.integration.image.conftest import PythonImage, run_module
from ansible_collections.edgeml.fleet.tests.integration.publish.test_minify import (
    PROGRAM,
    RECIPES,
    minify,
    model,  # noqa: F401 - a fixture
)
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
    photo = REPOSITORY_ROOT / "models" / "photo"
    application = tmp_path / "source" / "application"
    shutil.copytree(photo, application)
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
            *map(str, (application.parent, photo, roots / architecture, tmp_path / f"{architecture}-cache")),
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


@pytest.fixture(scope="module")
def emulated(roots: Path, python_image: PythonImage, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of an arm64 Python that has the packages which make smaller variants, by the same lock."""
    made = {**python_image.recipe, "files": []}
    made["python"] = {**made["python"], "requirements": "requirements.txt", "exclude": {}, "remove": []}
    path = tmp_path_factory.mktemp("tools") / "image.tar"
    archive = {"path": str(path), "architecture": "arm64", "name": "edgeml-test/tools:built"}
    options = {"recipe": made, "source_root": str(PROGRAM.parent), "cache": str(python_image.cache), "archive": archive}
    (layer,) = run_module(options)["layers"]["arm64"][1:]
    with tarfile.open(python_image.cache / "blobs" / layer["digest"].removeprefix("sha256:")) as packages:
        unpack(packages, roots / "arm64")
    return {
        "QEMU_LD_PREFIX": str(roots / "arm64"),
        "PYTHONPATH": f"{roots}/arm64{made['python']['target']}",
        "PYTHONDONTWRITEBYTECODE": "1",  # the packages have theirs
        # A board's: with SME, as the emulator has it by default, ONNX Runtime 1.24.4 multiplies 8 bits wrongly.
        "QEMU_CPU": "cortex-a76",
    }


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment of this machine's Python, as publish makes it."""
    environment = tmp_path_factory.mktemp("environment") / "tools"
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    install = [environment / "bin/pip", "install", "--quiet", "--require-hashes", "--requirement"]
    subprocess.run([*map(str, install), str(PROGRAM.parent / "requirements.txt")], check=True)
    return environment / "bin/python"


@pytest.mark.parametrize("recipe", RECIPES)
def test_an_arm64_controller_makes_the_same_variants(
    tools: Path, roots: Path, emulated: dict[str, str], model: Path, tmp_path: Path, recipe: str  # noqa: F811
) -> None:  # fmt: skip
    """It folds, calibrates and quantizes with ONNX Runtime for arm64, another Python, and another NumPy."""
    pythons = {"here": (tools, None), "there": (roots / "arm64/usr/bin/python3.13", emulated)}
    digests = []
    for name, (python, environment) in pythons.items():
        done = minify(python, model, tmp_path / name, recipe, environment)
        assert done.returncode == 0, done.stderr
        files = [path for path in sorted((tmp_path / name).rglob("*")) if path.is_file()]
        digests.append({path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files})
    assert "model.onnx" in digests[0] and digests[0] == digests[1]
