# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Synchronizations apart from who asked for them, without systemd."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.edgeml.fleet.plugins.module_utils._host import detached


@pytest.fixture(autouse=True)
def no_systemd(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(detached, "SYSTEMD", tmp_path / "none")


@pytest.fixture
def held() -> Iterator[threading.Event]:
    """An event for which a server waits with its answers."""
    event = threading.Event()
    yield event
    event.set()
