# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""MQTT 5 through a real broker: request and response, back-pressure, presence, and what QoS 1 promises."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from broker import Broker, Requester
from serving import features_request

ROWS = [[1.0, 2.0, 3.0, 4.0]]


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    running = Broker(tmp_path)
    running.start()
    yield running
    running.end()


@pytest.fixture
def requester(broker: Broker) -> Iterator[Requester]:
    client = Requester(broker)
    yield client
    client.close()


def test_request_and_response(start_server: Any, tmp_path: Path, broker: Broker, requester: Requester) -> None:
    server = start_server(mqtt=broker.settings(tmp_path))
    requester.wait_presence("online")
    reply = requester.ask("perceptron", features_request(ROWS, id="seven"), correlation=b"\x00\x01")
    assert reply.status == 200
    assert reply.correlation == b"\x00\x01"
    assert reply.content_type == "application/json"
    assert reply.properties["model-digest"].startswith("sha256:")
    over_rest = server.infer("perceptron", features_request(ROWS, id="seven"))
    assert reply.json == over_rest.json
