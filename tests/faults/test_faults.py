# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Faults at every step of the release transaction, on a real engine and a disk that can lose its power.

``make test-faults TRIALS=500 SEED=1`` makes many trials and writes a table; ``make test`` makes a few.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from ansible_collections.edgeml.fleet.tests.faults.rig import Rig
from ansible_collections.edgeml.fleet.tests.faults.table import write_table
from ansible_collections.edgeml.fleet.tests.faults.trial import Fault, Result, carry_out, plan
from ansible_collections.edgeml.fleet.tests.support.content import REPOSITORY_ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SEED = int(os.environ.get("SEED") or 1)
TRIALS = int(os.environ.get("TRIALS") or 20)


@pytest.fixture(scope="module")
def results() -> Iterator[list[Result]]:
    """What became of each trial; the table is written from it."""
    found: list[Result] = []
    yield found
    write_table(REPOSITORY_ROOT / "build" / "faults" / "trials.md", found, SEED)


PLAN = plan(TRIALS, SEED)
NAMES = [f"{number} {fault.name}, {delay:.2f} s after {step} began" for number, (fault, step, delay) in enumerate(PLAN)]


@pytest.mark.parametrize(("fault", "step", "delay"), PLAN, ids=NAMES)
def test_release_survives(rig: Rig, results: list[Result], fault: Fault, step: str, delay: float) -> None:
    result = carry_out(rig, fault, step, delay)
    results.append(result)
    story = f"{result.sent} requests, {result.lost} lost"
    print("\n".join([story, *result.wrong]), flush=True)
    assert not result.wrong, "\n".join([story, *result.wrong])
