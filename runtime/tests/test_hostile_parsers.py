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

from grpc_peers import KNOWN, ODDITIES, GrpcPeers, Sent, call  # noqa: E402
from mutation import Choices  # noqa: E402
from targets import TARGETS, seeds  # noqa: E402

FINDINGS = sorted((_FUZZ / "corpus").glob("*/*"))


@pytest.mark.parametrize("finding", FINDINGS, ids=lambda file: f"{file.parent.name}/{file.name}")
def test_earlier_finding(finding: Path) -> None:
    TARGETS[finding.parent.name](finding.read_bytes())


def test_corpus_is_the_same_to_peers() -> None:
    """Our HTTP/1.1 server and uvicorn's see the same requests in it, but for what is known to differ."""
    for seed in seeds("http_peers_bytes"):
        TARGETS["http_peers_bytes"](seed)


def test_every_odd_call_is_the_same_to_grpcio() -> None:
    """Its server ends each as ours does, but for what is known to differ; what is known, is seen."""
    peers = GrpcPeers()
    for oddity in ("", *ODDITIES):
        peers.compare(Sent(call(1, oddity, Choices(b"")), {1: oddity}))
    peers.close()
    assert set(KNOWN) <= set(ODDITIES)


@pytest.mark.parametrize("target", [target for target in TARGETS if seeds(target) and "peers" not in target])
def test_damaged_request(target: str) -> None:
    for seed in seeds(target):
        for position in range(len(seed)):
            TARGETS[target](seed[:position])
            for replacement in (b"", b"\0", b"\xff", b"9", b'"'):
                TARGETS[target](seed[:position] + replacement + seed[position + 1 :])


@pytest.mark.parametrize(
    "target", [target for target in TARGETS if not seeds(target) and target != "grpc_peers_structured"]
)
@settings(max_examples=200, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.binary(min_size=16, max_size=96))
def test_almost_valid_request(target: str, data: bytes) -> None:
    TARGETS[target](data)


@settings(max_examples=50, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.binary(min_size=16, max_size=96))
def test_calls_end_as_with_grpcio(data: bytes) -> None:
    TARGETS["grpc_peers_structured"](data)
