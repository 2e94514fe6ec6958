# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Each role has a Molecule scenario that lets it drift."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROLES = sorted(path.name for path in (ROOT / "roles").iterdir())
#: It runs nothing: nothing can drift.
WITHOUT_TASKS = "defaults"


@pytest.mark.parametrize("role", ROLES)
def test_a_role_has_a_scenario(role: str) -> None:
    scenario = ROOT / "extensions" / "molecule" / role
    steps = {path.stem for path in scenario.glob("*.yml")}
    assert steps >= {"molecule", "inventory", "converge", "verify"}
    assert "side_effect" in steps or role == WITHOUT_TASKS
    removable = (ROOT / "roles" / role / "tasks" / "remove.yml").exists()
    assert "cleanup" in steps or not removable
