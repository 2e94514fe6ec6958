# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The Molecule scenarios that are quick."""

from __future__ import annotations

import pytest

from .conftest import QUICK, run_scenario

pytestmark = [pytest.mark.lab, pytest.mark.timeout(3600)]


@pytest.mark.parametrize("scenario", QUICK)
def test_scenario(scenario: str) -> None:
    run_scenario(scenario)
