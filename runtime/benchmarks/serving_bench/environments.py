# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Virtual environments below build/, one per server, made once per version of their requirements."""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from serving_bench.places import BENCHMARKS, ENVIRONMENTS, ROOT

RUNTIME = ROOT / "runtime"
LOCKED = ROOT / "requirements"


class InstallError(Exception):
    """An environment cannot be made here."""


def requirements(name: str) -> Path:
    """The file that locks an environment's packages."""
    if name == "edgeml":
        return LOCKED / "runtime.txt"
    if name == "models":
        return LOCKED / "models.txt"
    return BENCHMARKS / "requirements" / f"{name}.txt"


def make_environment(name: str) -> Path:
    """The interpreter of an environment that holds exactly its requirements; ours holds the checkout's source too.

    Raises InstallError when the packages do not fit this machine.
    """
    directory = ENVIRONMENTS / name
    python = directory / "bin" / "python"
    stamp = directory / "made-from"
    wanted = _fingerprint(name)
    if stamp.exists() and stamp.read_text(encoding="utf-8") == wanted:
        return python
    print(f"making the environment of {name} (once)", flush=True)
    shutil.rmtree(directory, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", str(directory)], check=True)
    _pip(python, "--requirement", str(requirements(name)))
    if name == "edgeml":
        # A copy: the build would leave files in the source, and take those of an earlier build for current.
        with tempfile.TemporaryDirectory() as copy:
            source = shutil.copytree(
                RUNTIME, Path(copy) / "runtime", ignore=shutil.ignore_patterns("build", "*.egg-info")
            )
            _pip(python, "--no-deps", str(source))
    stamp.write_text(wanted, encoding="utf-8")
    return python


def installed_bytes(name: str) -> int:
    """What an environment's packages take on disk, bytecode included, pip not."""
    total = 0
    for directory, names, files in os.walk(ENVIRONMENTS / name):
        names[:] = [each for each in names if each != "pip" and not each.startswith("pip-")]
        total += sum((Path(directory) / file).lstat().st_blocks * 512 for file in files)
    return total


def installed_versions(name: str) -> dict[str, str]:
    """Name and version of every package in an environment."""
    python = ENVIRONMENTS / name / "bin" / "python"
    listed = subprocess.run(
        [str(python), "-m", "pip", "list", "--format=freeze", "--disable-pip-version-check"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    return dict(line.split("==", 1) for line in listed.splitlines() if "==" in line)


def _pip(python: Path, *arguments: str) -> None:
    command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *arguments]
    found = subprocess.run(["nice", *command], capture_output=True, text=True)
    if found.returncode:
        errors = [line for line in found.stderr.splitlines() if line.startswith("ERROR:")]
        raise InstallError(f"pip could not install {arguments[-1]}: {' '.join(errors)[-1000:]}")


def _fingerprint(name: str) -> str:
    digest = hashlib.sha256(sys.version.encode())
    digest.update(requirements(name).read_bytes())
    if name == "edgeml":
        files = [RUNTIME / "pyproject.toml", *sorted((RUNTIME / "src" / "edgeml_runtime").rglob("*.py"))]
        for file in files:
            digest.update(str(file.relative_to(RUNTIME)).encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()
