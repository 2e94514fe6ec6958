# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""MQTT 5 through a real broker: request and response, back-pressure, presence, and what QoS 1 promises."""

import asyncio
import json
import re
import signal
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from authority import Authority
from broker import BASE, PASSWORDS, Broker, Requester, wait_until
from edgeml_runtime.config_file import read_config
from edgeml_runtime.errors import ConfigurationError
from edgeml_runtime.transports.mqtt import client as mqtt_client
from edgeml_runtime.transports.mqtt import connection as mqtt_connection
from onnx_models import ModelDirectory, perceptron_scores
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from serving import Server, UnixConnection, ask, features_request, steps_request

ROWS = [[1.0, 2.0, 3.0, 4.0]]


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    running = Broker(tmp_path / "broker")
    running.start()
    yield running
    running.end()


@pytest.fixture
def requester(broker: Broker) -> Iterator[Requester]:
    client = Requester(broker)
    yield client
    client.close()


@pytest.fixture(scope="module")
def asked(
    model_directories: dict[str, ModelDirectory], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Server, Requester]]:
    """A server with a small limit, behind a broker with TLS, shared by the tests that only ask."""
    directory = tmp_path_factory.mktemp("mqtt")
    broker = Broker(directory / "broker")
    models = [model_directories["perceptron"], model_directories["repeated_product"]]
    server = Server.start(directory, models, mqtt=broker.tls_settings(), limits={"body_bytes": 5000})
    try:
        # The server does not need the broker to be ready, and finds it when it comes.
        server.wait_ready()
        server.wait(lambda: "Connection refused" in server.log)
        broker.start()
        requester = Requester(broker)
        requester.wait_presence("online")
        yield server, requester
        requester.close()
    finally:
        server.end()
        broker.end()


@pytest.fixture(scope="module")
def steps_of_10_ms(asked: tuple[Server, Requester]) -> int:
    """How many steps of the slow model take about 10 ms here and now."""
    server, _ = asked
    steps = 1000
    while True:
        answer = server.infer("repeated_product", steps_request(steps))
        assert answer.status == 200
        seconds = samples(server)['edgeml_inference_duration_seconds_sum{model="repeated_product",stage="compute"}']
        if seconds > 0.2:
            return max(1, int(steps / 100))
        steps *= 4


def samples(server: Server) -> dict[str, float]:
    text = server.rest("GET", "/metrics", port=server.metrics_port).body.decode()
    lines = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, _, value in lines}


def counted(server: Server, model: str, code: str) -> float:
    labels = f'{{code="{code}",model="{model}",protocol="mqtt"}}'
    return samples(server).get(f"edgeml_inference_requests_total{labels}", 0)


def binary_request(features: Any, outputs: Any = ()) -> tuple[bytes, dict[str, str]]:
    """A body for the perceptron, and the user property that goes with it."""
    parameters = {"binary_data_size": features.nbytes}
    tensor = {"name": "features", "datatype": "FP32", "shape": features.shape, "parameters": parameters}
    head = json.dumps({"inputs": [tensor], "outputs": list(outputs)}).encode()
    return head + features.tobytes(), {"inference_header_content_length": str(len(head))}


# -- requests and answers ----------------------------------------------------------------------------------------------


def test_json(asked: tuple[Server, Requester]) -> None:
    server, requester = asked
    before = counted(server, "perceptron", "200")
    reply = requester.ask("perceptron", features_request(ROWS, id="seven"), correlation=b"\x00\xff", expiry=30)
    over_rest = server.infer("perceptron", features_request(ROWS, id="seven"))
    assert reply.json == over_rest.json
    assert reply.correlation == b"\x00\xff"
    assert reply.content_type == "application/json"
    assert reply.properties == {"status": "200", "model-digest": over_rest.headers["x-edgeml-model-digest"]}
    assert reply.expiry is not None and 1 <= reply.expiry <= 30
    assert counted(server, "perceptron", "200") == before + 1
    assert samples(server)["edgeml_mqtt_connected"] == 1
    # Without correlation data and expiry, the answer has none either; the version may be named.
    reply = requester.ask("perceptron", features_request(ROWS), model_version="1.0.0")
    assert (reply.status, reply.correlation, reply.expiry) == (200, None, None)


def test_binary(asked: tuple[Server, Requester]) -> None:
    _, requester = asked
    features = np.arange(8, dtype=np.float32).reshape(2, 4)
    body, length = binary_request(features, [{"name": "best"}, {"name": "scores", "parameters": {"binary_data": True}}])
    reply = requester.ask("perceptron", body, **length)
    assert reply.status == 200, reply.body
    assert reply.content_type == "application/octet-stream"
    answer_length = int(reply.properties["inference-header-content-length"])
    best, scores = json.loads(reply.body[:answer_length])["outputs"]
    assert best["data"] == perceptron_scores(features).argmax(axis=1).tolist()
    assert scores["parameters"] == {"binary_data_size": 24}
    np.testing.assert_allclose(
        np.frombuffer(reply.body[answer_length:], np.float32).reshape(2, 3), perceptron_scores(features), rtol=1e-5
    )


def test_large_bodies(start_server: Any, broker: Broker, requester: Requester) -> None:
    start_server(mqtt=broker.settings())
    requester.wait_presence("online")
    features = np.random.default_rng(1).random((500_000, 4), np.float32)
    body, length = binary_request(features, [{"name": "scores", "parameters": {"binary_data": True}}])
    reply = requester.ask("perceptron", body, **length)
    assert reply.status == 200, reply.body[:500]
    scores = np.frombuffer(reply.body[int(reply.properties["inference-header-content-length"]) :], np.float32)
    np.testing.assert_allclose(scores.reshape(-1, 3), perceptron_scores(features), rtol=1e-4)


def test_a_model_of_other_protocols_gets_no_messages(
    start_server: Any, broker: Broker, requester: Requester, model_directories: dict[str, ModelDirectory]
) -> None:
    perceptron = model_directories["perceptron"]
    hidden = replace(model_directories["repeated_product"], protocols=("rest", "grpc"))
    server = start_server([replace(perceptron, protocols=("mqtt",)), hidden], mqtt=broker.settings())
    requester.wait_presence("online")
    requester.send("repeated_product", steps_request(1))
    assert requester.ask("perceptron", features_request(ROWS)).json["model_name"] == "perceptron"
    assert server.infer("repeated_product", steps_request(1)).status == 200
    assert server.infer("perceptron", features_request(ROWS)).status == 404
    assert len(requester.replies) == 1


@pytest.mark.parametrize(
    ("body", "properties", "status", "message"),
    [
        (b"{", {}, 400, "the body is not valid JSON"),
        (b"", {}, 400, "the body is not valid JSON"),
        (features_request([[1.0]]), {}, 400, "shape"),
        (features_request(ROWS), {"model_version": "9.9.9"}, 404, "1.0.0"),
        (features_request(ROWS), {"inference_header_content_length": "-1"}, 400, "'-1', not a number of bytes"),
        (features_request(ROWS), {"inference_header_content_length": "٣"}, 400, "'٣', not a number of bytes"),
        (b" " * 5001, {}, 413, "the body is larger than 5000 bytes"),
    ],
)
def test_errors(
    asked: tuple[Server, Requester], body: Any, properties: dict[str, str], status: int, message: str
) -> None:
    _, requester = asked
    reply = requester.ask("perceptron", body, correlation=b"wrong", **properties)
    assert (reply.status, reply.content_type, reply.correlation) == (status, "application/json", b"wrong")
    assert list(reply.json) == ["error"]
    assert message in reply.json["error"]


def test_deadline(asked: tuple[Server, Requester], steps_of_10_ms: int) -> None:
    _, requester = asked
    reply = requester.ask("repeated_product", steps_request(1000 * steps_of_10_ms), expiry=1)
    assert reply.status == 504
    assert reply.json == {"error": "model 'repeated_product' gave no answer within 1 s"}


def test_messages_that_get_no_answer_do_no_harm(asked: tuple[Server, Requester]) -> None:
    server, requester = asked
    before = counted(server, "", "400")
    requester.send("perceptron", features_request(ROWS), response_topic="")
    requester.send("perceptron", features_request(ROWS), x="a byte order mark, which paho refuses: \ufeff")
    requester.send("perceptron", b" " * 200_000)  # the broker keeps what is larger than the Maximum Packet Size
    requester.send("perceptron", features_request(ROWS), response_topic="$SYS/forbidden")
    requester.send("perceptron", features_request(ROWS), response_topic="no/wild/cards/#")
    reply = requester.ask("perceptron", features_request(ROWS), correlation=b"last")
    assert (reply.status, reply.correlation) == (200, b"last")
    assert counted(server, "", "400") == before + 3  # these ask for no answer, or for one that cannot be sent
    assert "ended" not in server.log


def test_acknowledges_in_the_order_of_arrival(
    start_server: Any,
    broker: Broker,
    requester: Requester,
    model_directories: dict[str, ModelDirectory],
    steps_of_10_ms: int,
) -> None:
    """The specification demands it; answers come as soon as they are there."""
    start_server([*model_directories.values()], mqtt=broker.settings())
    requester.wait_presence("online")
    requester.send("repeated_product", steps_request(30 * steps_of_10_ms), correlation=b"slow")
    for _ in range(5):
        requester.send("perceptron", features_request(ROWS), correlation=b"fast")
    wait_until(lambda: len(requester.replies) == 6, "all answers")
    assert [reply.correlation for reply in requester.replies] == [b"fast"] * 5 + [b"slow"]
    sent = re.compile(r"Sending PUBLISH to edgeml:press:7 \(d0, q1, r0, m(\d+)")
    received = re.compile(r"Received PUBACK from edgeml:press:7 \(Mid: (\d+)")
    wait_until(lambda: len(received.findall(broker.log)) == 6, "all acknowledgements")
    assert received.findall(broker.log) == sent.findall(broker.log)


def test_log_lines(start_server: Any, broker: Broker, requester: Requester) -> None:
    server = start_server(mqtt=broker.settings(), log_requests=True)
    requester.wait_presence("online")
    requester.ask("perceptron", features_request(ROWS, id="seven"))
    requester.ask("perceptron", b"{")
    lines = [json.loads(line) for line in server.log.splitlines() if line.startswith("{")]
    seen = [(line["protocol"], line["model"], line["status"], line["id"], line["client"]) for line in lines]
    assert seen == [
        ("mqtt", "perceptron", "200", "seven", requester.answers_topic),
        ("mqtt", "perceptron", "400", "", requester.answers_topic),
    ]
    assert lines[0]["total_ms"] > 0


def test_results_that_nobody_asked_for(start_server: Any, broker: Broker, requester: Requester) -> None:
    start_server(mqtt=broker.settings(publish_results=True))
    requester.wait_presence("online")
    requester.send("perceptron", features_request(ROWS, id="1"), response_topic="", correlation=b"c")
    wait_until(lambda: requester.results, "a result")
    result = requester.results[0]
    assert (result.topic, result.status, result.correlation) == (f"{BASE}/perceptron/result", 200, b"c")
    assert result.json["id"] == "1"
    # Who asks for an answer gets it where it wants it, and there only.
    assert requester.ask("perceptron", features_request(ROWS)).status == 200
    assert len(requester.results) == 1


def test_subscriptions_follow_the_models(
    start_server: Any, broker: Broker, requester: Requester, model_directories: dict[str, ModelDirectory]
) -> None:
    models = [model_directories["perceptron"].config, model_directories["every_type"].config]
    server = start_server(mqtt=broker.settings())
    requester.wait_presence("online")

    def reload(configured: list[dict[str, str]]) -> None:
        server.change_config(models=configured)
        assert ask(UnixConnection(server.admin_socket), "POST", "/reload").status == 200

    reload(models)
    wait_until(lambda: f"{BASE}/every_type/infer (QoS 1)" in broker.log, "a subscription")
    assert requester.ask("every_type", b"{}").status == 400
    reload(models[:1])
    wait_until(lambda: "Received UNSUBSCRIBE" in broker.log, "the subscription ends")
    assert requester.ask("perceptron", features_request(ROWS)).status == 200
    # A session that remembers more than the next process serves.
    reload(models)
    assert server.stop() == 0
    server = start_server(mqtt=broker.settings())
    requester.wait_presence("offline")
    requester.wait_presence("online")
    reply = requester.ask("every_type", b"{}")
    assert (reply.status, reply.json) == (404, {"error": "model 'every_type' is not served here"})
    wait_until(lambda: broker.log.count("Received UNSUBSCRIBE") == 2, "the old subscription ends")


# -- limits ------------------------------------------------------------------------------------------------------------


def test_back_pressure(
    start_server: Any,
    broker: Broker,
    requester: Requester,
    model_directories: dict[str, ModelDirectory],
    steps_of_10_ms: int,
) -> None:
    """This broker keeps to Receive Maximum until the first acknowledgement; then the server does."""
    server = start_server([model_directories["repeated_product"]], mqtt=broker.settings(receive_maximum=3))
    requester.wait_presence("online")
    for number in range(40):
        requester.send("repeated_product", steps_request(2 * steps_of_10_ms), correlation=b"%d" % number)
    under_way = []
    while len(requester.replies) < 40:
        under_way.append(samples(server)['edgeml_inference_under_way{model="repeated_product"}'])
    assert 0 < max(under_way) <= 3
    assert {reply.status for reply in requester.replies} == {200}
    assert len(requester.answered()) == 40
    before_the_first = broker.log.partition("Received PUBACK from edgeml:press:7")[0]
    # Fewer where the first answer was faster than the third request.
    assert 1 <= before_the_first.count("Sending PUBLISH to edgeml:press:7") <= 3


def test_qos_0_is_bounded_too(
    start_server: Any,
    broker: Broker,
    requester: Requester,
    model_directories: dict[str, ModelDirectory],
    steps_of_10_ms: int,
) -> None:
    server = start_server([model_directories["repeated_product"]], mqtt=broker.settings(receive_maximum=3))
    requester.wait_presence("online")
    for _ in range(20):
        requester.send("repeated_product", steps_request(30 * steps_of_10_ms), qos=0)
    wait_until(lambda: len(requester.replies) == 20, "all answers")
    refused = [reply for reply in requester.replies if reply.status == 429]
    assert len(refused) == 17
    assert refused[0].json == {"error": "3 requests are under way, no more are taken with QoS 0"}
    assert counted(server, "", "429") == 17
    assert requester.ask("repeated_product", steps_request(1), qos=0).status == 200


def test_answer_that_is_too_large_for_the_broker(tmp_path: Path, start_server: Any) -> None:
    """Sent all the same, it would end the connection, again and again."""
    broker = Broker(tmp_path / "broker", max_packet_size=3000)
    broker.start()
    requester = Requester(broker)
    try:
        server = start_server(mqtt=broker.settings())
        requester.wait_presence("online")
        body, length = binary_request(np.random.default_rng(1).random((150, 4), np.float32))
        reply = requester.ask("perceptron", body, **length)
        assert reply.status == 413
        assert "at most 3000 are allowed" in reply.json["error"]
        assert requester.ask("perceptron", features_request(ROWS)).status == 200
        assert "ended" not in server.log
    finally:
        requester.close()
        broker.end()


def test_broker_that_takes_one_answer_at_a_time(tmp_path: Path, start_server: Any) -> None:
    """Its Receive Maximum holds for all answers together; none is lost or sent too early."""
    broker = Broker(tmp_path / "broker", max_inflight_messages=1)
    broker.start()
    requester = Requester(broker)
    try:
        server = start_server(mqtt=broker.settings())
        requester.wait_presence("online")
        for number in range(60):
            requester.send("perceptron", features_request(ROWS), correlation=b"%d" % number)
        wait_until(lambda: len(requester.answered()) == 60, "all answers")
        assert {reply.status for reply in requester.replies} == {200}
        assert "ended" not in server.log
    finally:
        requester.close()
        broker.end()


def test_broker_that_knows_clients_by_their_certificates(start_server: Any, tmp_path: Path) -> None:
    broker = Broker(tmp_path / "broker", by_certificate=True)
    broker.start()
    requester = Requester(broker)
    try:
        settings = broker.tls_settings()
        nameless = {name: value for name, value in settings.items() if name not in ("username", "password_file")}
        server = start_server(mqtt={**nameless, "tls": {"ca": nameless["tls"]["ca"]}})
        server.wait(lambda: "certificate required" in server.log)
        assert server.log.count("certificate required") == 1
        server.end()
        server = start_server(mqtt=nameless)
        requester.wait_presence("online")
        assert requester.ask("perceptron", features_request(ROWS)).status == 200
    finally:
        requester.close()
        broker.end()


# -- the connection ----------------------------------------------------------------------------------------------------


def test_wrong_password(start_server: Any, broker: Broker, requester: Requester) -> None:
    settings = broker.settings()
    password = Path(str(settings["password_file"]))
    password.write_text("a-wrong-secret")
    server = start_server(mqtt=settings)
    server.wait_ready()
    wait_until(lambda: broker.log.count("not authorised") >= 2, "several attempts")
    assert server.log.count("it refused the connection: Not authorized") == 1
    assert "a-wrong-secret" not in server.log
    assert samples(server)["edgeml_mqtt_connected"] == 0
    assert server.infer("perceptron", features_request(ROWS)).status == 200
    assert server.stop() == 0
    assert requester.presence == []


def test_wrong_authority(start_server: Any, broker: Broker, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    settings = broker.tls_settings()
    assert isinstance(settings["tls"], dict)
    settings["tls"]["ca"] = str(Authority(tmp_path / "other").ca)
    server = start_server(mqtt=settings)
    server.wait(lambda: "certificate verify failed" in server.log)
    assert samples(server)["edgeml_mqtt_connected"] == 0


def test_broker_that_hangs(start_server: Any, broker: Broker, requester: Requester) -> None:
    server = start_server(mqtt=broker.settings(keep_alive_seconds=1))
    requester.wait_presence("online")
    assert broker.process is not None
    broker.process.send_signal(signal.SIGSTOP)
    server.wait(lambda: "the connection ended: it was lost" in server.log)
    broker.process.send_signal(signal.SIGCONT)
    wait_until(lambda: requester.presence.count("online") == 2, "the server is back")
    assert requester.ask("perceptron", features_request(ROWS)).status == 200
    broker.process.send_signal(signal.SIGSTOP)
    assert server.stop() == 0


def test_presence(start_server: Any, broker: Broker, requester: Requester) -> None:
    server = start_server(mqtt=broker.settings())
    requester.wait_presence("online")
    assert server.stop() == 0
    requester.wait_presence("offline")
    server = start_server(mqtt=broker.settings())
    requester.wait_presence("online")
    server.process.kill()
    requester.wait_presence("offline")
    assert requester.presence == ["online", "offline", "online", "offline"]
    # It is retained: who comes later knows as well.
    late = Requester(broker, "late")
    late.wait_presence("offline")
    late.close()


# -- what QoS 1 promises -----------------------------------------------------------------------------------------------

COUNT = 300


class Load:
    """Requests that take a while in sum; each must get its answer, some may get two."""

    def __init__(self, requester: Requester, steps: int) -> None:
        self.requester = requester
        self._body = steps_request(steps)
        self._sent = 0

    def send(self, count: int) -> None:
        for number in range(self._sent, self._sent + count):
            self.requester.send("repeated_product", self._body, correlation=b"%d" % number)
        self._sent += count

    def wait_answered(self, count: int) -> None:
        wait_until(lambda: len(self.requester.answered()) >= count, f"{count} answers")

    def wait_acknowledged(self) -> None:
        wait_until(lambda: self.requester.acknowledged >= self._sent, "the broker has all requests")

    def check(self) -> None:
        missing = {b"%d" % number for number in range(self._sent)}

        def complete() -> bool:
            missing.difference_update(self.requester.answered())
            return not missing

        wait_until(complete, f"answers to {sorted(missing)}")
        assert [reply for reply in self.requester.replies if reply.status != 200] == []


@pytest.fixture
def slow_server(start_server: Any, model_directories: dict[str, ModelDirectory], broker: Broker) -> Any:
    return lambda **options: start_server([model_directories["repeated_product"]], mqtt=broker.settings(), **options)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_broker_restarts(
    slow_server: Any, broker: Broker, requester: Requester, steps_of_10_ms: int, number: signal.Signals
) -> None:
    server = slow_server()
    requester.wait_presence("online")
    load = Load(requester, steps_of_10_ms)
    load.send(COUNT)
    load.wait_answered(20)
    server.process.send_signal(signal.SIGSTOP)  # so that work is left, however long the broker takes to store
    load.wait_acknowledged()
    broker.wait_stored()
    broker.end(number)
    server.process.send_signal(signal.SIGCONT)
    assert len(requester.answered()) < COUNT
    load.send(50)
    server.wait(lambda: "the connection ended" in server.log)
    server.wait(lambda: samples(server)["edgeml_mqtt_connected"] == 0)
    assert server.rest("GET", "/v2/health/ready").status == 200
    broker.start()
    load.check()
    assert server.stop() == 0
    assert "Traceback" not in server.log


def test_server_is_killed(slow_server: Any, requester: Requester, steps_of_10_ms: int) -> None:
    server = slow_server()
    requester.wait_presence("online")
    load = Load(requester, steps_of_10_ms)
    load.send(COUNT)
    load.wait_answered(20)
    server.end()
    assert len(requester.answered()) < COUNT
    load.send(50)
    slow_server()
    load.check()


def test_server_stops_in_order(slow_server: Any, requester: Requester, steps_of_10_ms: int) -> None:
    """What it has begun it finishes: no answer comes twice."""
    server = slow_server()
    requester.wait_presence("online")
    load = Load(requester, steps_of_10_ms)
    load.send(COUNT)
    load.wait_answered(20)
    assert server.stop() == 0
    requester.wait_presence("offline")
    assert len(requester.answered()) < COUNT
    slow_server()
    load.check()
    assert len(requester.replies) == COUNT


def test_another_process_takes_over(
    tmp_path: Path,
    model_directories: dict[str, ModelDirectory],
    slow_server: Any,
    broker: Broker,
    requester: Requester,
    steps_of_10_ms: int,
) -> None:
    old = slow_server()
    requester.wait_presence("online")
    (tmp_path / "new").mkdir()
    models = [model_directories["repeated_product"]]
    new = Server.start(tmp_path / "new", models, arguments=["--candidate"], mqtt=broker.settings())
    try:
        new.wait_ready()
        load = Load(requester, steps_of_10_ms)
        load.send(COUNT)
        load.wait_answered(20)
        assert "connected to MQTT broker" not in new.log
        assert ask(UnixConnection(new.admin_socket), "POST", "/activate").status == 200
        old.wait(lambda: "another process serves this device now" in old.log)
        load.send(20)  # however many were answered by then, these are for the new one
        assert old.stop() == 0
        load.check()
        assert samples(new)["edgeml_mqtt_connected"] == 1
        assert "another process" not in new.log
        assert "another process" in old.log
        assert old.log.count("connected to MQTT broker") <= 2  # this broker does not say why it ended the connection
        assert set(requester.presence) == {"online"}
    finally:
        new.end()


# -- the connection alone, with shorter times --------------------------------------------------------------------------


def connection_to(
    broker: Broker,
    monkeypatch: pytest.MonkeyPatch,
    handle: Callable[[mqtt_connection.BrokerConnection, MQTTMessage], Awaitable[None]],
) -> mqtt_connection.BrokerConnection:
    monkeypatch.setattr(mqtt_connection, "_STAND_ASIDE_SECONDS", 1.5)
    monkeypatch.setattr(mqtt_connection, "_LONGEST_ASIDE_SECONDS", 1.5)
    monkeypatch.setattr(mqtt_client, "_FIRST_DELAY_SECONDS", 0.1)
    document = {"listen": {}, "models": [{"name": "x", "version": "1.0.0", "path": "x"}], "mqtt": broker.settings()}
    mqtt = read_config(document, "runtime.json").mqtt
    assert mqtt is not None
    topics = {f"{BASE}/x/infer"}
    connection = mqtt_connection.BrokerConnection(
        mqtt, 1000, lambda: topics, lambda message: handle(connection, message), print
    )
    return connection


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(240):
        while not condition():
            await asyncio.sleep(0.02)


def test_stands_aside_until_the_other_process_is_gone(
    broker: Broker, requester: Requester, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def handle(_connection: mqtt_connection.BrokerConnection, _message: MQTTMessage) -> None:
        raise AssertionError("nobody asks")

    async def scenario() -> None:
        first, second = (connection_to(broker, monkeypatch, handle) for _ in range(2))
        first.start()
        await until(lambda: first.connected)
        second.start()
        await until(lambda: second.connected and not first.connected)
        # The first one comes back, sees the second and leaves; the second one comes back and stays.
        await until(lambda: first.connected)
        await until(lambda: second.connected and not first.connected)
        await second.stop(1)
        await until(lambda: first.connected)
        await first.stop(1)

    asyncio.run(scenario())
    requester.wait_presence("offline")
    assert [state for state, _ in groupby(requester.presence)] == ["online", "offline", "online", "offline"]


def test_looks_less_and_less_often_whether_the_other_process_is_gone(
    broker: Broker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def handle(_connection: mqtt_connection.BrokerConnection, _message: MQTTMessage) -> None:
        raise AssertionError("nobody asks")

    async def scenario() -> list[float]:
        connection = connection_to(broker, monkeypatch, handle)
        monkeypatch.setattr(mqtt_connection, "_LONGEST_ASIDE_SECONDS", 20.0)
        delays: list[float] = []
        connection._loop = SimpleNamespace(call_later=lambda seconds, _callback: delays.append(seconds))  # type: ignore[assignment]
        for _ in range(6):
            connection._stand_aside()
        return delays

    assert asyncio.run(scenario()) == [1.5, 3.0, 6.0, 12.0, 20.0, 20.0]
    assert len([record for record in caplog.records if "another process" in record.getMessage()]) == 1


def test_no_fight_with_another_client_of_the_same_id(
    broker: Broker, requester: Requester, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It takes the session back whenever it loses it, as fast as it can; this server does so less and less often."""
    delays: list[float] = []
    monkeypatch.setattr(mqtt_client.Retries, "next_delay", watched(mqtt_client.Retries.next_delay, delays))

    async def handle(_connection: mqtt_connection.BrokerConnection, _message: MQTTMessage) -> None:
        raise AssertionError("nobody asks")

    async def scenario() -> None:
        connection = connection_to(broker, monkeypatch, handle)
        connection.start()
        await until(lambda: connection.connected)
        other = Client(CallbackAPIVersion.VERSION2, "edgeml:press:7", protocol=MQTTProtocolVersion.MQTTv5)
        other.username_pw_set("client", PASSWORDS["client"])
        other.reconnect_delay_set(1, 1)
        other.connect_async("127.0.0.1", broker.port)
        other.loop_start()
        await until(lambda: len(delays) >= 6)
        other.disconnect()
        other.loop_stop()
        await until(lambda: connection.connected)  # it has not given up
        await connection.stop(1)

    asyncio.run(scenario())
    assert all(seconds >= 0.05 * 2**index for index, seconds in enumerate(delays[:6]))
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert ["another client with the id of this one" in warning for warning in warnings] == [False, True]


def watched(method: Callable[[Any], float], results: list[float]) -> Callable[[Any], float]:
    """A method whose results are noted."""

    def call(subject: Any) -> float:
        results.append(method(subject))
        return results[-1]

    return call


def test_answer_that_ends_the_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some brokers end it when a topic is forbidden, as this one does when its queues are said to be empty."""
    broker = Broker(tmp_path / "broker", max_queued_messages=0)
    broker.start()
    requester = Requester(broker)
    refusals: list[str] = []

    async def handle(connection: mqtt_connection.BrokerConnection, message: MQTTMessage) -> None:
        topic = getattr(message.properties, "ResponseTopic", "")
        told = Properties(PacketTypes.PUBLISH)
        told.UserProperty = [("status", "200")]
        refusal = await connection.publish(topic, b"{}", 1, told)
        if refusal:
            refusals.append(f"{topic}: {refusal}")

    async def scenario() -> None:
        connection = connection_to(broker, monkeypatch, handle)
        connection.start()
        await asyncio.to_thread(requester.wait_presence, "online")
        requester.send("x", b"", response_topic="$SYS/forbidden")
        requester.send("x", b"")
        last = "$SYS/forbidden: the connection ended three times in a row when it was published"
        await until(lambda: last in refusals)
        await until(lambda: requester.replies)
        await connection.stop(1)

    try:
        asyncio.run(scenario())
        assert len(requester.replies) >= 1
        assert {refusal.partition(": ")[0] for refusal in refusals} == {"$SYS/forbidden"}
    finally:
        requester.close()
        broker.end()


# -- the configuration -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mqtt", "message"),
    [
        ({"host": "broker.plant"}, "mqtt: seen host 'broker.plant' with no TLS; allowed: loopback; elsewhere only TLS"),
        ({"host": "g" * 64}, "mqtt.host: seen "),
        ({"host": "127.0.0.1", "topic_prefix": "$share/group"}, "mqtt.topic_prefix: seen '$share/group'"),
        ({"host": "127.0.0.1", "device": "a/#"}, "mqtt.device: seen 'a/#'"),
        ({"host": "127.0.0.1", "session_expiry_seconds": 0}, "mqtt.session_expiry_seconds: seen 0"),
        ({"host": "127.0.0.1", "password_file": __file__}, "mqtt.password_file: seen no mqtt.username"),
    ],
)
def test_refused_configuration(mqtt: dict[str, object], message: str) -> None:
    document = {"listen": {}, "models": [], "mqtt": {"device": "press", **mqtt}}
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        read_config(document, "runtime.json")


def test_a_broker_without_retained_messages(start_server: Any, tmp_path: Path) -> None:
    """It refuses a will that is to be retained; the server serves without, and says so once."""
    broker = Broker(tmp_path / "plain", retain_available="false")
    broker.start()
    try:
        requester = Requester(broker)
        server = start_server(mqtt=broker.settings())
        requester.wait_presence("online")
        requester.send("perceptron", features_request(ROWS), correlation=b"1")
        wait_until(lambda: requester.replies, "an answer")
        assert [reply.status for reply in requester.replies] == [200]
        assert server.log.count("is not retained") == 1
        broker.end()
        broker.start()
        requester.wait_presence("online")
        server.wait(lambda: server.log.count("connected to MQTT broker") == 2)
        assert server.log.count("is not retained") == 1
        requester.close()
    finally:
        broker.end()
