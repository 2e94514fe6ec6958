# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What runs on targets works with Python 3.8, the oldest that Ansible supports there."""

from __future__ import annotations

import ast
import json
import os
import subprocess
from pathlib import Path

import ansible
import pytest
from ansible_collections.edgeml.fleet.tests.support.target_python import (
    FLOOR,
    PACKAGE,
    ROOT,
    interpreters,
    target_files,
)

INTERPRETERS = interpreters()
#: Methods that came with Python 3.9 or later. What else is newer, the linter and vermin find.
NEWER_METHODS = {
    "removeprefix", "removesuffix", "is_relative_to", "readlink", "with_stem", "hardlink_to", "bit_count", "randbytes",
}  # fmt: skip


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory to import Ansible's and the collection's shared code from, and nothing else."""
    directory = tmp_path_factory.mktemp("target")
    (directory / "ansible").symlink_to(Path(ansible.__file__).parent)
    (directory / "ansible_collections" / "edgeml").mkdir(parents=True)
    (directory / "ansible_collections" / "edgeml" / "fleet").symlink_to(ROOT)
    return directory


@pytest.mark.parametrize("version", INTERPRETERS)
def test_target_code_works_with_each_python_of_this_machine(version: str, library: Path, tmp_path: Path) -> None:
    names = [PACKAGE + ".".join(path.relative_to(ROOT).with_suffix("").parts) for path in target_files()]
    command = [str(INTERPRETERS[version]), "-S", "-W", "error", str(ROOT / "tests/support/target_smoke.py"), *names]
    environment = {"PYTHONPATH": str(library), "PYTHONDONTWRITEBYTECODE": "1", "PATH": os.defpath}
    seen = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=tmp_path)
    assert seen.returncode == 0, seen.stderr
    answer = json.loads(seen.stdout)
    assert ".".join(map(str, answer["version"])) == version
    # A host whose Python is upgraded must not see another release.
    assert answer["release"] == "fdb4394e9ff25cc22e6822bc61a45a2e4b634f49083f80af9df091b33e049582"


def test_target_code_calls_no_newer_method() -> None:
    for path in target_files():
        tree = ast.parse(path.read_text(), feature_version=FLOOR)
        called = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
        methods = [
            f.attr for f in called if isinstance(f, ast.Attribute) and ast.unparse(f.value) not in ("os", "math")
        ]
        assert not NEWER_METHODS.intersection(methods), path
