# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A release gives way to another one while clients ask through a broker: each request of QoS 1 is answered."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.edgeml.fleet.tests.faults.rig import FACTORS, Rig
from broker import DEVICE, Broker, Requester, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

BODY = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1.0]}]}


@pytest.fixture
def broker(rig: Rig, tmp_path: Path) -> Iterator[Broker]:
    """A broker in the network of the rig; it lets everybody in, since the container sees no file of the test."""
    del rig
    running = Broker(tmp_path / "broker", allow_anonymous="true")
    running.start()
    yield running
    running.end()


def converge(rig: Rig, options: dict[str, Any]) -> dict[str, Any]:
    out, error = rig.box.converge(options).communicate(timeout=300)
    told = dict(json.loads(out))
    assert not told.get("failed"), f"{told}\n{error.decode()}"
    return told


def through(options: dict[str, Any], broker: Broker) -> dict[str, Any]:
    """Return a release that is served over MQTT as well."""
    mqtt = {"host": "127.0.0.1", "port": broker.port, "device": DEVICE}
    return {**options, "configuration": {**options["configuration"], "mqtt": mqtt}}


def test_a_swap_leaves_no_request_over_mqtt_unanswered(rig: Rig, broker: Broker) -> None:
    (before,) = rig.served()
    after = FACTORS[(FACTORS.index(before) + 1) % len(FACTORS)]
    converge(rig, through(rig.options[before], broker))
    requester = Requester(broker)
    requester.wait_presence("online")
    over, sent = threading.Event(), 0

    def ask_on() -> None:
        nonlocal sent
        while not over.wait(0.01):
            requester.send("multiply", BODY, correlation=str(sent).encode())
            sent += 1

    asking = threading.Thread(target=ask_on)
    asking.start()
    try:
        wait_until(lambda: len(requester.replies) > 50, "answers")
        assert converge(rig, through(rig.options[after], broker))["changed"]
        swapped = len(requester.replies)
        wait_until(lambda: len(requester.replies) > swapped + 50, "answers of the new release")
    finally:
        over.set()
        asking.join()
    everything = {str(number).encode() for number in range(sent)}
    wait_until(lambda: requester.answered() >= everything, "an answer to each request", 60)
    requester.close()
    assert {reply.status for reply in requester.replies} == {200}
    factors = Counter(int(reply.json["outputs"][0]["data"][0]) for reply in requester.replies)
    assert set(factors) == {before, after}
    assert set(requester.presence) == {"online"}
    print(f"{sent} requests, {len(requester.replies) - sent} of them answered twice")
    converge(rig, rig.options[after])  # the broker ends
