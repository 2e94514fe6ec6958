# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is recorded as brought along, where another installation was under way at the first look.

Stands for apt and dpkg are used, since such a moment cannot be held with the real ones.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

BEFORE = {
    "libc-bin": ("triggers-pending", "yes"), "man-db": ("triggers-awaited", "no"), "half": ("half-configured", "no"),
    "gone": ("config-files", "no"),
}  # fmt: skip
AFTER = {name: ("installed", essential) for name, (_, essential) in BEFORE.items() if name != "half"}
#: What dpkg knows after the installation: what was asked for, what that needs, and an essential package it brought.
INSTALLED = {**AFTER, "half": ("installed", "no"), "wanted": ("installed", "no"), "needed": ("installed", "no"),
             "dash": ("installed", "yes")}  # fmt: skip
DPKG_QUERY = """#!/bin/sh
case "$3" in
*Essential*) sed 's/^\\(\\S*\\) \\(\\S*\\) \\(\\S*\\)$/\\1 \\2\\n\\1 essential=\\3/' {root}/state ;;
*) cut -d' ' -f1,2 {root}/state ;;
esac
"""
APT_GET = """#!/bin/sh
echo "$@" >> {root}/calls
case " $* " in *" install "*) cp {root}/installed {root}/state ;; esac
"""


def state(packages: dict[str, tuple[str, str]]) -> str:
    return "".join(f"{name} {status} {essential}\n" for name, (status, essential) in packages.items())


def program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def test_what_was_half_there_is_not_recorded_and_nothing_essential_is_removed(tmp_path: Path) -> None:
    (tmp_path / "state").write_text(state(BEFORE))
    (tmp_path / "installed").write_text(state(INSTALLED))
    (tmp_path / "bin").mkdir()
    program(tmp_path / "bin" / "dpkg-query", DPKG_QUERY.format(root=tmp_path))
    program(tmp_path / "bin" / "apt-get", APT_GET.format(root=tmp_path))
    records = tmp_path / "records"
    variables = {"ansible_python_interpreter": sys.executable, "system_packages_record_directory": str(records)}
    done = subprocess.run(
        [str(Path(sys.executable).with_name("ansible-playbook")), "-i", "localhost,", "-c", "local",
         "-e", json.dumps(variables), str(Path(__file__).with_name("apt_record.yml"))],
        capture_output=True, text=True, check=False,
        env={**os.environ, "PATH": f"{tmp_path}/bin:{os.environ['PATH']}"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert (records / "kept").read_text().split("\n") == ["dash", "gone", "needed", "wanted requested", ""]
    purge = (tmp_path / "calls").read_text().splitlines()[-1].split(" purge ")[1].split()
    assert sorted(purge) == ["gone", "needed", "wanted"]
    assert not (records / "models").exists()
