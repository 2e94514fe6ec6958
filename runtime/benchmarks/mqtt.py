# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""What MQTT costs: ``python runtime/benchmarks/mqtt.py`` on loopback, through mosquitto, with a tiny model.

The client is paho, and slow itself: the floor is what it takes to send itself a message through the
broker. Figures of one run can be compared with each other. Prints JSON; times in microseconds, memory in MiB.
"""

import json
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
os.environ["PYTHONPATH"] = sys.path[1]  # of the server process

from broker import BASE, PASSWORDS, Broker, send_at_once
from onnx_models import ModelDirectory, perceptron
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from serving import Server, features_request

SAMPLES = 1000
UNDER_WAY = 32
ANSWERS = "answers/bench"


class Caller:
    """Publishes, and counts what comes back."""

    def __init__(self, broker: Broker) -> None:
        self._ready = threading.Event()
        self._came = threading.Semaphore(0)
        self._client = Client(CallbackAPIVersion.VERSION2, "bench", protocol=MQTTProtocolVersion.MQTTv5)
        self._client.username_pw_set("client", PASSWORDS["client"])
        self._client.max_inflight_messages = 2 * UNDER_WAY
        self._client.on_socket_open = send_at_once
        self._client.on_connect = lambda client, *_: client.subscribe(ANSWERS, qos=1)
        self._client.on_subscribe = lambda *_: self._ready.set()
        self._client.on_message = self._on_message
        self._client.connect("127.0.0.1", broker.port)
        self._client.loop_start()
        self._ready.wait(30)
        self._properties = Properties(PacketTypes.PUBLISH)
        self._properties.ResponseTopic = ANSWERS
        self._body = json.dumps(features_request([[1.0, 2.0, 3.0, 4.0]])).encode()

    def send(self, topic: str, qos: int) -> None:
        """One message."""
        self._client.publish(topic, self._body, qos, properties=self._properties)

    def wait(self) -> None:
        """One message that comes."""
        if not self._came.acquire(timeout=30):
            raise RuntimeError("no answer within 30 s")

    def _on_message(self, *_arguments: Client | MQTTMessage) -> None:
        self._came.release()


def latency(send: Callable[[], None], wait: Callable[[], None]) -> dict[str, float]:
    """Percentiles of one at a time."""
    seconds = []
    for _ in range(SAMPLES):
        started = time.perf_counter()
        send()
        wait()
        seconds.append(time.perf_counter() - started)
    cuts = statistics.quantiles(seconds[SAMPLES // 10 :], n=100)
    return {f"p{percent}": round(cuts[percent - 1] * 1e6) for percent in (50, 95, 99)}


def throughput(send: Callable[[], None], wait: Callable[[], None]) -> int:
    """Answers a second, with as many under way as the server takes."""
    started = time.perf_counter()
    for _ in range(UNDER_WAY):
        send()
    for _ in range(SAMPLES):
        wait()
        send()
    seconds = time.perf_counter() - started
    for _ in range(UNDER_WAY):
        wait()
    return round(SAMPLES / seconds)


def resident(server: Server) -> float:
    """MiB."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return round(int(status.partition("VmRSS:")[2].split()[0]) / 1024, 1)


def start(directory: Path, model: ModelDirectory, **settings: dict[str, object]) -> Server:
    """A server that is ready, and connected if it has a broker."""
    directory.mkdir()
    server = Server.start(directory, [model], (), None, **settings)
    server.wait_ready()
    if settings:
        server.wait(lambda: "connected to MQTT broker" in server.log)
        time.sleep(0.5)
    return server


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        model = perceptron(directory)
        broker = Broker(directory / "broker", persistence="false")
        broker.start()
        caller = Caller(broker)
        server = start(directory / "without", model)
        try:
            found: dict[str, object] = {"resident, no MQTT": resident(server)}
            server.stop()
            server = start(directory / "with", model, mqtt=broker.settings(receive_maximum=UNDER_WAY))
            found["resident, MQTT"] = resident(server)
            for title, topic in (("floor", ANSWERS), ("inference", f"{BASE}/{model.name}/infer")):
                for qos in (1, 0):
                    found[f"{title}, QoS {qos}"] = latency(partial(caller.send, topic, qos), caller.wait)
                rate = throughput(partial(caller.send, topic, 1), caller.wait)
                found[f"{title}, QoS 1, {UNDER_WAY} under way, a second"] = rate
            found["resident, MQTT, after load"] = resident(server)
        finally:
            server.end()
            broker.end()
        print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
