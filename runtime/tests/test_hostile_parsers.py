# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""A short run of the fuzzed targets (see runtime/fuzz) and a replay of everything that was ever found."""

import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

_FUZZ = Path(__file__).parent.parent / "fuzz"
sys.path.append(str(_FUZZ))

from targets import TARGETS, seeds  # noqa: E402

FINDINGS = sorted((_FUZZ / "corpus").glob("*/*"))


@pytest.mark.parametrize("finding", FINDINGS, ids=lambda file: f"{file.parent.name}/{file.name}")
def test_earlier_finding(finding: Path) -> None:
    TARGETS[finding.parent.name](finding.read_bytes())


@pytest.mark.parametrize("target", [target for target in TARGETS if seeds(target)])
def test_damaged_request(target: str) -> None:
    for seed in seeds(target):
        for position in range(len(seed)):
            TARGETS[target](seed[:position])
            for replacement in (b"", b"\0", b"\xff", b"9", b'"'):
                TARGETS[target](seed[:position] + replacement + seed[position + 1 :])


@pytest.mark.parametrize("target", [target for target in TARGETS if not seeds(target)])
@settings(max_examples=200, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.binary(min_size=16, max_size=96))
def test_almost_valid_request(target: str, data: bytes) -> None:
    TARGETS[target](data)
