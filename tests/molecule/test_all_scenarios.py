# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The other Molecule scenarios, for each role and for the whole: about two minutes each."""

from __future__ import annotations

import pytest

from .conftest import QUICK, SCENARIOS, run_scenario

pytestmark = [pytest.mark.lab, pytest.mark.timeout(3600)]


@pytest.mark.parametrize(
    "scenario", sorted({path.parent.name for path in SCENARIOS.glob("*/molecule.yml")} - set(QUICK))
)
def test_scenario(scenario: str) -> None:
    run_scenario(scenario)
