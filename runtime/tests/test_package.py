# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""The package as users install it: a wheel with every module, the generated code and the types."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from zipfile import ZipFile

RUNTIME = Path(__file__).parent.parent


def test_the_wheel_is_complete_and_runs(tmp_path: Path) -> None:
    copy = tmp_path / "runtime"
    copy.mkdir()
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(RUNTIME / name, copy)
    shutil.copytree(RUNTIME / "src", copy / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", str(tmp_path), str(copy)], check=True, timeout=120)
    (wheel,) = tmp_path.glob("*.whl")
    packed = {name for name in ZipFile(wheel).namelist() if name.startswith("edgeml_runtime/")}
    source = {str(file.relative_to(copy / "src")) for file in (copy / "src").rglob("*") if file.suffix != ".pyc"}
    source = {name for name in source if (copy / "src" / name).is_file() and ".egg-info" not in name}
    assert packed == source
    assert {"edgeml_runtime/py.typed", "edgeml_runtime/codecs/open_inference_grpc_pb2.py"} <= packed

    # The dependencies are those of the environment that runs the tests; the package is the wheel's.
    target = tmp_path / "installed"
    subprocess.run([*pip, "install", "--no-deps", "--target", str(target), str(wheel)], check=True, timeout=120)
    environment = {**os.environ, "PYTHONPATH": str(target)}
    script = [sys.executable, str(target / "bin" / "edgeml-runtime"), "--version"]
    result = subprocess.run(script, capture_output=True, text=True, check=True, timeout=60, env=environment)
    assert result.stdout == "edgeml-runtime 0.1.0\n"


def test_dependencies_are_those_of_the_locked_environment() -> None:
    """pyproject.toml and the requirements that the image is made of name the same packages."""
    project = tomllib.loads((RUNTIME / "pyproject.toml").read_text())["project"]
    lines = (RUNTIME.parent / "requirements" / "runtime.in").read_text().splitlines()
    wanted = {line.strip() for line in lines if line.strip() and not line.startswith("#")}
    assert {_name(line) for line in project["dependencies"]} == {_name(line) for line in wanted}


def _name(requirement: str) -> str:
    (name,) = re.findall(r"^[\w-]+", requirement)
    return str(name).lower()
