# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fixtures of the unit tests of releases."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from ansible_collections.edgeml.fleet.plugins.module_utils._release import transaction
from ansible_collections.edgeml.fleet.plugins.module_utils._release.container import Container
from ansible_collections.edgeml.fleet.plugins.module_utils._release.transaction import Release
from ansible_collections.edgeml.fleet.tests.unit.plugins.module_utils._release.memory_engine import (
    MODEL,
    MemoryEngine,
    activate,
)


@pytest.fixture
def engine() -> MemoryEngine:
    return MemoryEngine()


@pytest.fixture
def release(engine: MemoryEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Release:
    """A release below a temporary directory, whose runtime is always ready and right."""
    monkeypatch.setattr(os, "chown", lambda *arguments: None)
    monkeypatch.setattr(transaction, "says_ready", lambda container, name: True)
    monkeypatch.setattr(Release, "_check", lambda self, container, answers_only: [])
    monkeypatch.setattr(Container, "activate", activate)
    (tmp_path / "models" / MODEL.directory_name).mkdir(parents=True)
    return Release(engine, tmp_path, "", 0.0)
