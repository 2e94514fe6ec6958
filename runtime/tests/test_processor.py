# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""A processor below x86-64-v2 is told in one line, before numpy dies of it."""

import platform
import shutil
import subprocess
import sys

import pytest
from debian_packages import unpacked
from edgeml_runtime.processor import missing_features


def test_this_processor() -> None:
    assert missing_features() == []


@pytest.mark.skipif(platform.machine() != "x86_64", reason="a processor of that kind cannot be old here")
def test_an_old_processor() -> None:
    qemu = shutil.which("qemu-x86_64-static") or unpacked("qemu", ["qemu-user-static"]) / "usr/bin/qemu-x86_64-static"
    command = [qemu, "-cpu", "qemu64", sys._base_executable, "-m", "edgeml_runtime", "--version"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 1, ended
    (line,) = ended.stderr.splitlines()
    assert line.startswith("edgeml-runtime: this processor lacks SSSE3")
    assert "x86-64-v2" in line


def test_nothing_else_is_imported_before() -> None:
    code = "import sys, edgeml_runtime.start; print('numpy' in sys.modules, 'edgeml_runtime.config' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert ended.stdout.split() == ["False", "False"]
