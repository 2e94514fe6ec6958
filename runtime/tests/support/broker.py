# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""A real MQTT broker, Debian's mosquitto, with passwords and TLS; and a client that asks through it."""

import getpass
import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from authority import Authority
from paho.mqtt import publish
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from ports import free_ports

DEVICE = "press/7"
BASE = f"edgeml/{DEVICE}"
PASSWORDS = {"server": "correct-horse-battery", "client": "staple"}
# Debian keeps it in a directory for administrators.
_PATH = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin"))
_POLICY = Path("/usr/sbin/policy-rc.d")


def wait_until(condition: Callable[[], Any], what: str, seconds: float = 240) -> None:
    """Poll until the condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"never happened: {what}")
        time.sleep(0.02)


def send_at_once(_client: Client, _data: Any, opened: Any) -> None:
    """Callback of a client: no packet waits for the acknowledgement of the one before."""
    opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def mosquitto() -> str:
    """The broker's program; Debian's package is installed when it is missing, and its service is not started."""
    if shutil.which("mosquitto", path=_PATH) is None:
        root = [] if os.geteuid() == 0 else ["sudo"]
        refused = not _POLICY.exists()
        if refused:  # how Debian lets one say that no service may start
            subprocess.run(
                [*root, "tee", _POLICY], input=b"#!/bin/sh\nexit 101\n", stdout=subprocess.DEVNULL, check=True
            )
            subprocess.run([*root, "chmod", "755", _POLICY], check=True)
        try:
            subprocess.run([*root, "apt-get", "update", "-qq"], check=True)
            install = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", "mosquitto"]
            subprocess.run([*root, "env", "DEBIAN_FRONTEND=noninteractive", *install], check=True)
        finally:
            if refused:
                subprocess.run([*root, "rm", "-f", _POLICY], check=True)
    program = shutil.which("mosquitto", path=_PATH)
    assert program is not None
    return program


class Broker:
    """A broker process of the test's own, on two ports of loopback: in clear and with TLS; both want passwords.

    It keeps sessions on disk, and writes them after every change.
    """

    def __init__(self, directory: Path, by_certificate: bool = False, **settings: object) -> None:
        """``by_certificate``: with TLS, a client's name is that of its certificate. ``settings`` are mosquitto's."""
        directory.mkdir()
        self._directory = directory
        self.log_file = directory / "mosquitto.log"
        self.port, self.tls_port = free_ports(2)
        self.process: subprocess.Popen[bytes] | None = None
        self._program = mosquitto()
        self._authority = Authority(directory)
        self.store = directory / "mosquitto.db"
        for user, password in PASSWORDS.items():
            create = [] if (directory / "passwords").exists() else ["-c"]
            command = ["mosquitto_passwd", *create, "-b", str(directory / "passwords"), user, password]
            subprocess.run(command, check=True, env={**os.environ, "PATH": _PATH})
        lines = {
            "user": getpass.getuser(),
            "allow_anonymous": "false",
            "password_file": directory / "passwords",
            "persistence": "true",
            "persistence_location": f"{directory}/",
            "autosave_interval": 1,
            "autosave_on_changes": "true",
            "max_inflight_messages": 1000,  # with 0, this one keeps to nobody's Receive Maximum
            "set_tcp_nodelay": "true",
            **settings,
        }
        (directory / "mosquitto.conf").write_text(
            "".join(f"{key} {value}\n" for key, value in lines.items())
            + f"listener {self.port} 127.0.0.1\n"
            + f"listener {self.tls_port} 127.0.0.1\ncafile {self._authority.ca}\nrequire_certificate true\n"
            + f"certfile {self._authority.certificate}\nkeyfile {self._authority.key}\n"
            + ("use_identity_as_username true\n" if by_certificate else "")
        )

    def start(self) -> None:
        """Start, also again, and wait until it listens."""
        with self.log_file.open("ab") as log:
            command = [self._program, "-v", "-c", str(self._directory / "mosquitto.conf")]
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        wait_until(self._listens, "the broker listens")

    def _listens(self) -> bool:
        assert self.process is not None and self.process.poll() is None, self.log
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def end(self, number: signal.Signals = signal.SIGKILL) -> None:
        """End the process."""
        if self.process is not None:
            self.process.send_signal(number)
            self.process.wait(240)
            self.process = None

    @property
    def log(self) -> str:
        """What the broker has written so far: every packet."""
        return self.log_file.read_text()

    def wait_stored(self) -> None:
        """Until all that the broker has acknowledged so far is on disk: it acknowledges before it writes.

        It writes after a change, so this makes one: another retained message.
        """
        now = time.time()
        self.note("stored")
        wait_until(lambda: self.store.exists() and self.store.stat().st_mtime > now, "the broker stores its sessions")

    def note(self, text: str) -> None:
        """Leave a retained message that concerns nobody."""
        publish.single(
            "note", text, qos=1, retain=True, hostname="127.0.0.1", port=self.port,
            auth={"username": "client", "password": PASSWORDS["client"]}, protocol=MQTTProtocolVersion.MQTTv5,
        )  # fmt: skip

    def settings(self, **more: object) -> dict[str, object]:
        """The "mqtt" of a server's configuration, in clear."""
        password_file = self._directory / "server-password"
        password_file.write_text(PASSWORDS["server"] + "\n")
        return {
            "host": "127.0.0.1",
            "port": self.port,
            "device": DEVICE,
            "username": "server",
            "password_file": str(password_file),
            **more,
        }

    def tls_settings(self, **more: object) -> dict[str, object]:
        """The same with TLS and a client certificate."""
        files = self._authority
        tls = {"ca": str(files.ca), "certificate": str(files.client_certificate), "key": str(files.client_key)}
        return self.settings(port=self.tls_port, tls=tls, **more)


@dataclass(frozen=True)
class Reply:
    """An answer: its body and properties."""

    topic: str
    body: bytes
    status: int
    content_type: str
    correlation: bytes | None
    properties: dict[str, str]
    expiry: int | None

    @property
    def json(self) -> Any:
        """The body, parsed."""
        return json.loads(self.body)


class Requester:
    """Asks through the broker; its session, too, outlives the broker."""

    def __init__(self, broker: Broker, name: str = "requester") -> None:
        self.answers_topic = f"answers/{name}"
        self.replies: list[Reply] = []
        #: What the server said of itself, and results that nobody asked for.
        self.presence: list[str] = []
        self.results: list[Reply] = []
        self.acknowledged = 0
        self._ready = threading.Event()
        self._client = Client(CallbackAPIVersion.VERSION2, name, protocol=MQTTProtocolVersion.MQTTv5)
        self._client.username_pw_set("client", PASSWORDS["client"])
        self._client.reconnect_delay_set(1, 1)
        self._client.on_socket_open = send_at_once
        self._client.on_connect = self._on_connect
        self._client.on_subscribe = lambda *_: self._ready.set()
        self._client.on_message = self._on_message
        self._client.on_publish = self._on_publish
        session = Properties(PacketTypes.CONNECT)
        session.SessionExpiryInterval = 3600
        session.ReceiveMaximum = 1000
        self._client.connect_async("127.0.0.1", broker.port, 30, clean_start=False, properties=session)
        self._client.loop_start()
        assert self._ready.wait(240)

    def close(self) -> None:
        """Disconnect."""
        self._client.disconnect()
        self._client.loop_stop()

    def wait_presence(self, state: str) -> None:
        """Until the server is said to be online or offline; once online, it has subscribed."""
        wait_until(lambda: self.presence and self.presence[-1] == state, f"presence {state}, but {self.presence}")

    def send(
        self,
        model: str,
        body: bytes | dict[str, Any],
        correlation: bytes | None = None,
        response_topic: str | None = None,
        qos: int = 1,
        expiry: int | None = None,
        **properties: str,
    ) -> None:
        """Publish a request; with an empty response topic it names none. Underscores in names stand for dashes."""
        asked = Properties(PacketTypes.PUBLISH)
        asked.ContentType = "application/json"
        if response_topic != "":
            asked.ResponseTopic = response_topic or self.answers_topic
        if correlation is not None:
            asked.CorrelationData = correlation
        if expiry is not None:
            asked.MessageExpiryInterval = expiry
        asked.UserProperty = [(name.replace("_", "-"), value) for name, value in properties.items()]
        payload = json.dumps(body).encode() if isinstance(body, dict) else body
        self._client.publish(f"{BASE}/{model}/infer", payload, qos, properties=asked)

    def ask(self, model: str, body: bytes | dict[str, Any], **options: Any) -> Reply:
        """Publish a request and wait for the next answer."""
        before = len(self.replies)
        self.send(model, body, **options)
        wait_until(lambda: len(self.replies) > before, "an answer")
        return self.replies[before]

    def answered(self) -> set[bytes | None]:
        """Correlation data of all answers so far."""
        return {reply.correlation for reply in self.replies}

    def _on_connect(self, client: Client, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        assert not reason.is_failure, reason
        client.subscribe([(self.answers_topic, 1), (f"{BASE}/status", 1), (f"{BASE}/+/result", 1)])

    def _on_publish(self, *_arguments: Any) -> None:
        self.acknowledged += 1

    def _on_message(self, _client: Client, _data: Any, message: MQTTMessage) -> None:
        if message.topic.endswith("/status"):
            self.presence.append(json.loads(message.payload)["state"])
            return
        told = dict(getattr(message.properties, "UserProperty", ()))
        replies = self.replies if message.topic == self.answers_topic else self.results
        replies.append(
            Reply(
                topic=message.topic,
                body=bytes(message.payload),
                status=int(told["status"]),
                content_type=getattr(message.properties, "ContentType", ""),
                correlation=getattr(message.properties, "CorrelationData", None),
                properties=told,
                expiry=getattr(message.properties, "MessageExpiryInterval", None),
            )
        )
