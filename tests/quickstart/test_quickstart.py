# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The quickstart on this machine: what it prints is true, twice is once, and it leaves nothing behind."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(900)

ROOT = Path(__file__).resolve().parents[2]
MADE = [
    "/var/lib/edgeml/store",
    "/var/lib/edgeml/mirror",
    "/var/lib/edgeml/models",
    "/etc/edgeml/store",
    "/etc/edgeml/mirror",
    "/etc/edgeml/runtime",
]


def play(name: str, *arguments: str) -> str:
    command: list[str | Path] = [
        Path(sys.executable).with_name("ansible-playbook"),
        "-i",
        ROOT / "inventories" / "quickstart",
        name,
        *arguments,
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def output() -> Iterator[str]:
    yield play("edgeml.fleet.quickstart")
    # The engine is the lab's as well; the role's own test removes it nowhere, CI's clean-up does.
    play("edgeml.fleet.remove", "--skip-tags", "engine")
    assert [path for path in MADE if Path(path).exists()] == []
    names = subprocess.run(["docker", "ps", "-a", "--format", "{{.Names}}"], capture_output=True, text=True, check=True)
    assert not {"edgeml-runtime", "edgeml-mirror", "edgeml-store"} & set(names.stdout.split())
    assert "edgeml.internal" not in Path("/etc/hosts").read_text()


def test_both_models_recognise_real_inputs(output: str) -> None:
    assert re.search(r"digits +1\.0\.0 +10 of 10 real inputs recognised: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9", output)
    assert re.search(r"file_type +1\.0\.0 +9 of 9 real inputs recognised: .*python", output)
    for protocol in ("REST", "gRPC"):
        assert re.search(rf"digits +{protocol} +\d+\.\d{{3}} +\d+\.\d{{3}} +\d+\.\d{{3}}", output)


@pytest.mark.parametrize("program", ["curl", "python3"])
def test_lines_to_try_work_when_pasted(output: str, program: str) -> None:
    line = re.search(rf"^ +({program} .*)$", output, re.MULTILINE)
    assert line
    done = subprocess.run(["bash", "-c", line[1]], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    if program == "curl":
        outputs = {tensor["name"]: tensor["data"] for tensor in json.loads(done.stdout)["outputs"]}
        assert outputs["label"] == [0]
    else:
        assert "A handwritten 0" in done.stdout
        assert "'label'" in done.stdout


def test_again_changes_nothing(output: str) -> None:
    del output
    recap = re.findall(r"^\S+ +: ok=\d+ +changed=(\d+)", play("edgeml.fleet.quickstart"), re.MULTILINE)
    assert recap == ["0", "0"]
