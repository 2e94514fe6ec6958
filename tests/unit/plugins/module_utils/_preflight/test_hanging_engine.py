# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A program docker that never answers, as of an engine that was stopped in the middle: each question to it ends."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._host import engine_service
from ansible_collections.edgeml.fleet.plugins.module_utils._host.command import run_program
from ansible_collections.edgeml.fleet.plugins.module_utils._host.engine_service import EngineService
from ansible_collections.edgeml.fleet.plugins.module_utils._preflight import host
from ansible_collections.edgeml.fleet.plugins.module_utils._preflight.examine import examine
from ansible_collections.edgeml.fleet.plugins.module_utils._preflight.host import Content, Host, Wanted

pytestmark = pytest.mark.timeout(120)

IMAGE = Content("image", "image runtime", "edgeml/runtime", "sha256:" + "a" * 64, 100 << 20)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host without systemd, whose engine is there and hangs. Its questions have a second each."""
    programs = tmp_path / "usr/bin"
    programs.mkdir(parents=True)
    for name, seconds in {"docker": 3600, "dockerd": 30}.items():  # dockerd goes on after its test, as it should
        (programs / name).write_text(f'#!/bin/sh\n[ "$1" = --version ] && exit 0\nexec sleep {seconds}\n')
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setattr(engine_service, "QUESTION_SECONDS", "1")
    monkeypatch.setattr(host, "ENGINE_SECONDS", 1)
    return tmp_path


def test_nothing_waits_for_an_engine_that_hangs(root: Path) -> None:
    findings = examine(Host(run_program, root, "x86_64", 64), Wanted(content=[IMAGE], engine_packages=["a"])).findings
    (engine,) = [finding for finding in findings if finding.name == "engine"]
    assert engine.value.startswith("installed, but does not answer within")
    assert EngineService(run_program, root).apply({}, 1.0, check_mode=True)["plan"] == {"action": "start"}


def test_a_start_ends_with_the_time_that_it_has(root: Path) -> None:
    with pytest.raises(FleetError, match="does not answer within 1 s"):
        EngineService(run_program, root).apply({}, 1.0, check_mode=False)
