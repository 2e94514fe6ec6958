# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The way back to a release that the host keeps, and what is remembered of the one that it leaves."""

from __future__ import annotations

import pytest
from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._release.transaction import Release
from ansible_collections.edgeml.fleet.tests.unit.plugins.module_utils._release.memory_engine import (
    MemoryEngine,
    desired,
)

FIRST, SECOND = (desired(threads).release_id() for threads in (1, 2))


@pytest.fixture
def twice(release: Release) -> Release:
    """A host that serves its second release, and keeps the first."""
    for threads in (1, 2):
        release.converge(desired(threads), check_mode=False)
    return release


def active(release: Release) -> str:
    return str(release.installed.state()["active"]["id"])


def outcomes(release: Release) -> list[tuple[str, str, str]]:
    return [(entry["outcome"], entry["release"], entry["by"]) for entry in release.installed.history.entries()]


@pytest.mark.parametrize("by", ["guard", "operator"])
def test_a_host_that_went_back_stays_there(twice: Release, engine: MemoryEngine, by: str) -> None:
    """The playbook is repeated since another host was away."""
    twice.roll_back(FIRST, check_mode=False, by=by)
    before, written = dict(engine.containers), outcomes(twice)
    for check_mode in (True, False):
        result = twice.roll_back("", check_mode)
        assert not result["changed"]
        assert result["release"]["id"] == FIRST
        assert result["plan"]["action"] == "none"
        (told,) = result["warnings"]
        assert SECOND[:12] in told
        assert "edgeml_release" in told
    assert engine.containers == before
    assert outcomes(twice) == written
    assert twice.roll_back(SECOND[:8], check_mode=False)["changed"], "who names it gets it"
    assert active(twice) == SECOND


def test_a_refused_release_is_no_way_back(twice: Release) -> None:
    installed = twice.installed
    recorded = installed.recorded(FIRST)
    assert recorded is not None
    installed.history.add("refused", recorded[1], recorded[0].attempt_id(FIRST), by="guard", reason="too slow")
    for check_mode in (True, False):
        with pytest.raises(FleetError, match="too slow") as caught:
            twice.roll_back("", check_mode)
        assert "edgeml_release" in caught.value.remedy
    assert active(twice) == SECOND
    assert twice.roll_back(FIRST, check_mode=False)["changed"]
