# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""A short run of the fuzzed targets (see runtime/fuzz) and a replay of everything that was ever found."""

import asyncio
import socket
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

sys.path.append(str(Path(__file__).parents[1] / "fuzz"))

import grpc_peers
from grpc_peers import KNOWN, ODDITIES, GrpcPeers, Sent, call
from mutation import Choices
from signatures import Broken
from targets import TARGETS, seeds
from virtual_time import VirtualTimeLoop

FINDINGS = sorted((Path(__file__).parents[1] / "fuzz" / "corpus").glob("*/*"))


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
    """Long seeds are damaged at some positions here; `make fuzz` tries all of them and more."""
    step = 1 + sum(map(len, seeds(target))) // 400
    for seed in seeds(target):
        for position in range(0, len(seed), step):
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


def test_time_passes_when_nothing_else_is_to_be_done() -> None:
    done: list[str] = []

    async def work() -> float:
        loop = asyncio.get_running_loop()
        before = loop.time()
        loop.call_later(3600, done.append, "an hour")
        thread = loop.run_in_executor(None, done.append, "thread")
        for _ in range(100):
            await asyncio.sleep(0)
        done.append("turns")
        await thread
        await asyncio.sleep(3601)
        return loop.time() - before

    loop = VirtualTimeLoop()
    assert loop.run_until_complete(work()) == pytest.approx(3601)
    assert done == ["thread", "turns", "an hour"]
    with pytest.raises(Broken, match="never comes"):
        loop.run_until_complete(loop.create_future())
    loop.close()


def test_a_peer_that_does_not_answer_is_no_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    """It accepts connections, as grpcio does on a machine that has no time for it."""
    monkeypatch.setattr(grpc_peers, "_SECONDS", 0.01)
    peers = GrpcPeers()
    sent = Sent(call(1, "", Choices(b"")), {1: ""})
    assert peers.compare(sent) is None
    with socket.create_server(("127.0.0.1", 0)) as silent:
        peers._port = silent.getsockname()[1]
        assert peers.compare(sent) == "grpcio gives no steady end to right, right"
    peers.close()


def test_a_steady_difference_is_a_finding() -> None:
    peers = GrpcPeers()
    with pytest.raises(Broken, match=r"status 12.*here, .*status 0.*there"):
        peers.compare(Sent(call(1, "two messages", Choices(b"")), {1: ""}))
    peers.close()


def test_virtual_time_passes_however_late_it_is() -> None:
    loop = VirtualTimeLoop()
    for late in (1e6, 1e9):
        loop._now.seconds = late + 0.139840398
        loop.run_until_complete(asyncio.wait_for(asyncio.sleep(0.1), 1))
        assert loop.time() == pytest.approx(late + 0.239840398)
    loop.close()
