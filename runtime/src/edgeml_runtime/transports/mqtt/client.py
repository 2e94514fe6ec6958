# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""paho's MQTT client as this server needs it: two repairs, TLS, no delay of small packets."""

import json
import logging
import random
import socket
import ssl
from dataclasses import dataclass
from typing import Any

from paho.mqtt.client import Client, MQTTMessage, MQTTMessageInfo
from paho.mqtt.enums import LogLevel, MQTTErrorCode
from paho.mqtt.exception import MalformedPacket
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from edgeml_runtime import __version__
from edgeml_runtime.config import Mqtt
from edgeml_runtime.errors import StartError

_FIRST_DELAY_SECONDS, LONGEST_DELAY_SECONDS = 1.0, 60.0
_OFTEN = 3
# The broker tells of a loss only when it lasts: neither a reconnect nor a successor makes the presence flicker.
_WILL_DELAY_SECONDS = 5

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Delivery:
    """A message that the broker waits to have acknowledged."""

    packet_id: int
    handled: bool = False


class Retries:
    """How long to wait before the next attempt to connect, and what to tell of it: each trouble once."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.reset()

    def reset(self) -> None:
        """The connection was good for a while."""
        self._failures = self._lost = 0
        self._trouble = ""

    def tell(self, trouble: str) -> None:
        """Log what keeps the broker away, once."""
        if trouble != self._trouble:
            self._trouble = trouble
            logger.warning("%s: %s; trying again", self._name, trouble)

    def tell_lost(self, seconds: float, why: str) -> None:
        """Log that a connection ended which was there for so long."""
        if seconds > LONGEST_DELAY_SECONDS:
            self.reset()
        self._lost += 1
        if self._lost < _OFTEN:
            self.tell(f"the connection ended: {why}")
        else:
            self.tell(
                f"the connection ended {_OFTEN} times soon after it was made; "
                "perhaps there is another client with the id of this one"
            )

    def next_delay(self) -> float:
        """Seconds, with jitter, twice as long after each failure in a row."""
        longest = min(_FIRST_DELAY_SECONDS * 2**self._failures, LONGEST_DELAY_SECONDS)
        self._failures = min(self._failures + 1, 16)
        return random.uniform(longest / 2, longest)  # noqa: S311


class PatchedClient(Client):
    """paho, but for two things of which it makes too much, and one that it tells its log alone."""

    #: Why the last connection was lost, in the words of the system.
    last_error = ""

    def _easy_log(self, level: int, fmt: str, *args: Any) -> None:
        if level == LogLevel.MQTT_LOG_ERR:
            self.last_error = str(args[-1]) if args else fmt

    def _packet_queue(
        self, command: int, packet: bytes | bytearray, mid: int, qos: int, info: MQTTMessageInfo | None = None
    ) -> MQTTErrorCode:
        # Before each write, paho copies all that is left of a packet: of a view that costs nothing.
        return super()._packet_queue(command, memoryview(packet), mid, qos, info)  # type: ignore[arg-type]

    def _handle_publish(self) -> MQTTErrorCode:
        try:
            return super()._handle_publish()
        except MalformedPacket as error:
            # The connection would end, and end again whenever the broker delivers the message again. One client
            # could so keep all others from their answers: paho refuses U+FEFF in properties, which MQTT allows.
            logger.warning("an MQTT message cannot be read: %s", error)
            packet = self._in_packet["packet"]
            end = 2 + int.from_bytes(packet[:2])
            message = MQTTMessage(int.from_bytes(packet[end : end + 2]), bytes(packet[2:end]))
            message.qos = self._in_packet["command"] >> 1 & 3
            self._handle_on_message(message)  # without properties and body
            return MQTTErrorCode.MQTT_ERR_SUCCESS


def session_properties(mqtt: Mqtt, largest_packet: int) -> Properties:
    """What the server tells the broker of its session."""
    session = Properties(PacketTypes.CONNECT)
    session.SessionExpiryInterval = mqtt.session_expiry_seconds
    session.ReceiveMaximum = mqtt.receive_maximum
    session.MaximumPacketSize = largest_packet
    return session


def presence(state: str, instance: str) -> bytes:
    """What the server says of itself on its topic."""
    return json.dumps({"state": state, "instance": instance, "version": __version__}).encode()


def set_will(client: Client, topic: str, told: bytes, retain: bool) -> None:
    """What the broker publishes when the server is gone without a goodbye."""
    will = Properties(PacketTypes.WILLMESSAGE)
    will.WillDelayInterval = _WILL_DELAY_SECONDS
    will.ContentType = "application/json"
    client.will_set(topic, told, qos=1, retain=retain, properties=will)


def send_at_once(_client: Client, _data: Any, opened: Any) -> None:
    """Set TCP_NODELAY on a connection that was just opened."""
    # An answer after an acknowledgement, or the reverse, would else wait some 40 ms for the broker's kernel.
    opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def tls_context(mqtt: Mqtt) -> ssl.SSLContext:
    """TLS to the broker. Raises StartError."""
    try:
        context = ssl.create_default_context(cafile=mqtt.ca)
    except (OSError, ssl.SSLError) as error:
        raise StartError(f"mqtt.tls.ca {mqtt.ca}: {error}") from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if mqtt.certificate is not None:
        try:
            context.load_cert_chain(mqtt.certificate, mqtt.key)
        except (OSError, ssl.SSLError) as error:
            raise StartError(f"mqtt.tls.certificate {mqtt.certificate} with mqtt.tls.key {mqtt.key}: {error}") from None
    return context
