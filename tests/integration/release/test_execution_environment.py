# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The execution environment that ansible-builder makes of execution-environment.yml."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

from ansible_collections.edgeml.fleet.tests.support.installed import ROOT, build, install

BUILDER = str(Path(sys.executable).with_name("ansible-builder"))


def test_the_installed_collection_says_what_it_needs(tmp_path: Path) -> None:
    """As ansible-builder reads it inside the image."""
    install(tmp_path)
    command = [BUILDER, "introspect", "--write-pip", str(tmp_path / "pip"), "--write-bindep", str(tmp_path / "bindep")]
    subprocess.run([*command, str(tmp_path)], check=True, capture_output=True)
    declared = (ROOT / "meta/ee-requirements.txt").read_text().splitlines()
    needed = {line for line in declared if line and not line.startswith("#")}
    assert {line.partition("#")[0].strip() for line in (tmp_path / "pip").read_text().splitlines()} >= needed
    assert "mmdebstrap [platform:dpkg]" in (tmp_path / "bindep").read_text()


def test_the_image_is_made_of_debian_and_of_python_packages_alone(tmp_path: Path) -> None:
    for name in ("execution-environment.yml", "meta/ee-requirements.txt", "meta/ee-bindep.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "build/release").mkdir(parents=True)
    build(tmp_path / "build/release")
    command = [BUILDER, "create", "--context", "context", "--output-filename", "Containerfile"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    text = (tmp_path / "context/Containerfile").read_text()
    assert len(list((tmp_path / "context/_build/collection").glob("edgeml-fleet-*.tar.gz"))) == 1
    for line in re.findall(r"ansible-galaxy .*", text):
        assert "--offline" in line
    bases = set(re.findall(r"^FROM (\S+)", text, re.MULTILINE))
    assert bases == {"$EE_BASE_IMAGE", "base"}, "one argument takes another Debian image"
    controller = (ROOT / "requirements/controller.in").read_text()
    installed = re.search(r'ANSIBLE_INSTALL_REFS="(ansible==\S+) ', text)
    assert installed and installed[1] in controller.splitlines(), "what is tested"
