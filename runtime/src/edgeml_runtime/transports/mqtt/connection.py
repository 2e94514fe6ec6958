# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""The connection to an MQTT 5 broker: session, presence, subscriptions, and messages handled as QoS 1 promises.

A message is acknowledged to the broker once it is handled, so whoever dies in between, the session keeps
it and the broker delivers it again. Receive Maximum bounds how many the broker delivers before that.
Specification: MQTT 5.0, sections 4.4 (delivery again), 4.6 (order of acknowledgements), 4.9 (flow control).

paho's network thread calls the methods ``_on_...``, which do little but pass on; all others run on the event loop.
More than 400 lines in one file, since all of it works on the one session.
"""

import asyncio
import json
import logging
import sys
import uuid
from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from time import monotonic
from typing import Any

from paho.mqtt.client import Client, ConnectFlags, DisconnectFlags, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from edgeml_runtime.config import Mqtt
from edgeml_runtime.transports.mqtt.client import (
    Delivery,
    PatchedClient,
    Retries,
    presence,
    send_at_once,
    session_properties,
    set_will,
    tls_context,
)

_SESSION_TAKEN_OVER = 0x8E
_RETAIN_NOT_SUPPORTED = 0x9A
_LARGEST_PACKET = 268_435_455  # what MQTT can carry
_MESSAGE_OVERHEAD = 64 * 1024  # topic and properties beside a body

# The process that took the session over is to keep it; should it be gone by then, the session comes back.
# If it is not, this one looks less and less often: looking takes the session for a moment.
_STAND_ASIDE_SECONDS, _LONGEST_ASIDE_SECONDS = 60.0, 960.0
_STATUS_SECONDS = 2.0
_GOODBYE_SECONDS = 2.0

_ONLINE = "online"
_OFFLINE = "offline"

logger = logging.getLogger(__name__)


class BrokerConnection:
    """A connection that comes back for ever, with one session for a device, whichever process serves it.

    The process that connected last has the session. ``connected``: whether it is this one now.
    """

    def __init__(
        self,
        mqtt: Mqtt,
        body_bytes: int,
        topics: Callable[[], Iterable[str]],
        handle: Callable[[MQTTMessage], Coroutine[Any, Any, None]],
        refuse: Callable[[MQTTMessage], None],
    ) -> None:
        """``topics``: what to subscribe to. ``handle`` is cancelled when the connection ends.

        ``refuse`` gets messages of QoS 0 beyond Receive Maximum, which does not bound them, without their
        bodies. Raises StartError when the TLS files do not fit.
        """
        self._mqtt = mqtt
        self._topics = topics
        self._handle = handle
        self._refuse = refuse
        self._loop = asyncio.get_running_loop()
        self._instance = uuid.uuid4().hex
        self._name = f"MQTT broker {mqtt.host}:{mqtt.port}"
        self._status_topic = f"{mqtt.topic_prefix}/{mqtt.device}/status"
        self._session = session_properties(mqtt, min(body_bytes + _MESSAGE_OVERHEAD, _LARGEST_PACKET))
        #: Of the network thread: whether the broker keeps the presence.
        self._retains = True
        self._client = self._new_client()
        self.connected = False

        self._stopping = False
        self._had_session = False
        self._asides = 0  # how often in a row another process had the session
        self._ours = asyncio.Event()
        self._ended = asyncio.Event()
        self._status: asyncio.Future[bytes] | None = None
        self._subscribed: set[str] = set()
        self._subscribing: dict[int, list[str]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._deliveries: deque[Delivery] = deque()
        self._published: dict[int, tuple[str, asyncio.Future[ReasonCode]]] = {}
        self._largest_packet = _LARGEST_PACKET
        self._may_publish = asyncio.Semaphore(1)
        # There are brokers that do not keep to Receive Maximum: mosquitto 2.0.11 delivers as many per acknowledgement.
        self._may_handle = asyncio.Semaphore(mqtt.receive_maximum)
        #: The topic that seems to have ended the connection, how often in a row; what was refused on this connection.
        self._suspect = ("", 0)
        self._refused = ""
        #: Messages; only the network thread counts up the taken ones, only the event loop the finished ones.
        self._taken = 0
        self._finished = 0
        #: Of the network thread: when the broker accepted the connection, and how often it did not.
        self._accepted: float | None = None
        self._was_refused = False
        self._retries = Retries(self._name)

    def start(self) -> None:
        """Connect in the background, for ever."""
        mqtt = self._mqtt
        self._client.connect_async(
            mqtt.host, mqtt.port, mqtt.keep_alive_seconds, clean_start=False, properties=self._session
        )
        self._client.loop_start()

    async def stop(self, drain_seconds: float) -> None:
        """Take no more messages, finish those under way in bounded time, say goodbye.

        What is unfinished by then stays with the broker.
        """
        self._stopping = True
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=drain_seconds)
        with suppress(TimeoutError):
            async with asyncio.timeout(_GOODBYE_SECONDS):
                if self.connected:
                    await self._announce(_OFFLINE)
                self._client.disconnect()
                if self.connected:
                    await self._ended.wait()

    def follow_topics(self) -> None:
        """Subscribe to topics that are new, unsubscribe from those that are no longer wanted."""
        if not self.connected:
            return
        wanted = set(self._topics())
        options = SubscribeOptions(qos=1, noLocal=True, retainHandling=SubscribeOptions.RETAIN_DO_NOT_SEND)
        if added := sorted(wanted - self._subscribed):
            _, packet_id = self._client.subscribe([(topic, options) for topic in added])
            if packet_id is not None:
                self._subscribing[packet_id] = added
        if removed := sorted(self._subscribed - wanted):
            self._client.unsubscribe(removed)
        self._subscribed = wanted

    async def publish(self, topic: str, body: bytes, qos: int, properties: Properties, retain: bool = False) -> str:
        """Publish, and wait until the broker has taken it, with QoS 0 until it is written.

        Gives the reason why the broker does not take it, empty when it does.
        """
        # Sent all the same, these would end the connection, and again after every new delivery of the request.
        if len(body) + 2 * _MESSAGE_OVERHEAD > self._largest_packet:
            size = len(body) + len(properties.pack()) + len(topic.encode()) + 16
            if size > self._largest_packet:
                return f"a message of {size} bytes, at most {self._largest_packet} are allowed"
        if topic == self._suspect[0] and self._suspect[1] >= 3:
            return "the connection ended three times in a row when it was published"
        async with self._may_publish:
            sent = self._client.publish(topic, body, qos, retain, properties)
            # The network thread passes the outcome on, so it cannot come before this.
            outcome: asyncio.Future[ReasonCode] = self._loop.create_future()
            self._published[sent.mid] = (topic, outcome)
            reason = await outcome
        return str(reason) if reason.is_failure else ""

    def send(self, topic: str, body: bytes, properties: Properties) -> None:
        """Publish with QoS 0, whatever becomes of it."""
        self._client.publish(topic, body, 0, properties=properties)

    def _new_client(self) -> PatchedClient:
        mqtt = self._mqtt
        # Stable, so that the session outlives the process; access rules of brokers dislike slashes.
        client_id = f"{mqtt.topic_prefix}:{mqtt.device}".replace("/", ":")
        client = PatchedClient(
            CallbackAPIVersion.VERSION2, client_id, protocol=MQTTProtocolVersion.MQTTv5, manual_ack=True
        )
        client.suppress_exceptions = True  # they would end the network thread
        client.max_inflight_messages = 0  # publish keeps to the broker's Receive Maximum, which paho does not know
        client.on_socket_open = send_at_once
        client.on_connect = self._on_connect
        client.on_connect_fail = self._on_connect_fail
        client.on_disconnect = self._on_disconnect
        client.on_subscribe = self._on_subscribe
        client.on_message = self._on_message
        client.on_publish = self._on_publish
        if mqtt.username is not None:
            client.username_pw_set(mqtt.username, mqtt.password)
        if mqtt.ca is not None:
            client.tls_set_context(tls_context(mqtt))
        self._set_will(client)
        return client

    def _set_will(self, client: Client) -> None:
        set_will(client, self._status_topic, presence(_OFFLINE, self._instance), self._retains)

    # -- on paho's network thread ----------------------------------------------------------------------------------

    def _on_connect(
        self, _client: Client, _data: Any, flags: ConnectFlags, reason: ReasonCode, properties: Properties | None
    ) -> None:
        if reason == _RETAIN_NOT_SUPPORTED and self._retains:
            self._lose_retained("it refuses retained messages")
            self._was_refused = True
            return
        if reason.is_failure:
            self._retries.tell(f"it refused the connection: {reason}")
            self._was_refused = True
            return  # paho reports a disconnect next
        self._accepted = monotonic()
        if self._retains and not getattr(properties, "RetainAvailable", 1):
            self._lose_retained("it has no retained messages")
        largest_packet = getattr(properties, "MaximumPacketSize", _LARGEST_PACKET)
        receive_maximum = getattr(properties, "ReceiveMaximum", 65535)
        self._pass_on(self._begin, flags.session_present, largest_packet, receive_maximum)

    def _on_connect_fail(self, _client: Client, _data: Any) -> None:
        self._retries.tell(str(sys.exc_info()[1]))  # paho calls this where it handles the error
        self._back_off()

    def _on_disconnect(
        self, _client: Client, _data: Any, flags: DisconnectFlags, reason: ReasonCode, _properties: Properties | None
    ) -> None:
        # The broker delivers again what is not acknowledged; answers that paho still has would come twice.
        self._client.drop_out_messages()
        from_broker = flags.is_disconnect_packet_from_server
        if self._accepted is not None and (from_broker or reason.is_failure):
            self._retries.tell_lost(monotonic() - self._accepted, str(reason) if from_broker else "it was lost")
        elif self._accepted is None and reason.is_failure and not self._was_refused and not self._stopping:
            self._retries.tell(f"the connection ended before it was accepted: {self._client.last_error or reason}")
        self._accepted = None
        self._was_refused = False
        self._back_off()
        if from_broker and reason == _SESSION_TAKEN_OVER:
            self._pass_on(self._stand_aside)
        self._pass_on(self._end)

    def _on_subscribe(
        self, _client: Client, _data: Any, packet_id: int, reasons: list[ReasonCode], _properties: Properties
    ) -> None:
        self._pass_on(self._check_subscriptions, packet_id, reasons)

    def _on_message(self, _client: Client, _data: Any, message: MQTTMessage) -> None:
        if message.topic == self._status_topic:
            self._pass_on(self._learn_status, message.payload)
        elif message.qos == 0 and self._taken - self._finished >= self._mqtt.receive_maximum:
            message.payload = b""
            self._pass_on(self._refuse, message)
        else:
            self._taken += 1
            self._pass_on(self._take, message)

    def _on_publish(
        self, _client: Client, _data: Any, packet_id: int, reason: ReasonCode, _properties: Properties
    ) -> None:
        self._pass_on(self._settle, packet_id, reason)

    def _pass_on(self, callback: Callable[..., None], *arguments: Any) -> None:
        with suppress(RuntimeError):  # the loop has ended, and with it the process
            self._loop.call_soon_threadsafe(callback, *arguments)

    def _lose_retained(self, why: str) -> None:
        # The presence is then seen by those alone who are there when it changes.
        self._retains = False
        logger.warning("%s: %s: the presence on %s is not retained", self._name, why, self._status_topic)
        self._set_will(self._client)

    def _back_off(self) -> None:
        """Set the time before the next attempt; paho's own has no jitter."""
        seconds = self._retries.next_delay()
        self._client.reconnect_delay_set(seconds, seconds)  # type: ignore[arg-type]  # it only adds and compares

    # -- on the event loop -----------------------------------------------------------------------------------------

    def _begin(self, session_present: bool, largest_packet: int, receive_maximum: int) -> None:
        if self._stopping:
            self._client.disconnect()
            return
        logger.info("connected to %s, session %s", self._name, "resumed" if session_present else "new")
        self.connected = True
        self._ended.clear()
        self._largest_packet = min(largest_packet, _LARGEST_PACKET)
        self._may_publish = asyncio.Semaphore(receive_maximum)
        self._in_background(self._settle_in(session_present))

    async def _settle_in(self, session_present: bool) -> None:
        """Serve, unless the session was lost to another process meanwhile: then give it back.

        Not all brokers say that a session was taken over. The retained presence tells whose it is.
        """
        if self._had_session and session_present and self._retains:
            self._status = self._loop.create_future()
            self._client.subscribe(self._status_topic)
            told = {}
            with suppress(TimeoutError, ValueError):  # nothing is known of another one
                async with asyncio.timeout(_STATUS_SECONDS):
                    told = json.loads(await self._status)
            self._client.unsubscribe(self._status_topic)
            if told.get("state") == _ONLINE and told.get("instance") != self._instance:
                self._stand_aside()
                return
        self._had_session = True
        self._asides = 0
        self._subscribed.clear()
        self.follow_topics()
        self._ours.set()
        await self._announce(_ONLINE)

    def _stand_aside(self) -> None:
        if not self._stopping:
            if not self._asides:
                message = (
                    "%s: another process serves this device now; one that is to stay needs an mqtt.device of its own"
                )
                logger.warning(message, self._name)
            self._client.disconnect()  # also ends the network thread
            self._loop.call_later(min(_STAND_ASIDE_SECONDS * 2**self._asides, _LONGEST_ASIDE_SECONDS), self._come_back)
            self._asides = min(self._asides + 1, 16)

    def _come_back(self) -> None:
        if not self._stopping:
            self.start()

    def _learn_status(self, told: bytes) -> None:
        if self._status is not None and not self._status.done():
            self._status.set_result(told)

    def _end(self) -> None:
        self.connected = False
        self._ours.clear()
        # Brokers work in order: what they refused, or else did not get to, is where they stopped.
        first = next((topic for topic, _ in self._published.values()), "")
        if culprit := self._refused or first:
            suspect, times = self._suspect
            self._suspect = (culprit, times + 1 if culprit == suspect else 1)
        self._refused = ""
        for task in self._tasks:
            task.cancel()
        self._deliveries.clear()
        self._published.clear()
        self._subscribing.clear()
        self._ended.set()

    def _check_subscriptions(self, packet_id: int, reasons: list[ReasonCode]) -> None:
        for topic, reason in zip(self._subscribing.pop(packet_id, ()), reasons, strict=False):
            if reason.value != 1:
                logger.error("%s does not grant QoS 1 for topic %s: %s", self._name, topic, reason)

    async def _announce(self, state: str) -> None:
        properties = Properties(PacketTypes.PUBLISH)
        properties.ContentType = "application/json"
        refusal = await self.publish(
            self._status_topic, presence(state, self._instance), 1, properties, retain=self._retains
        )
        if refusal:
            logger.error("%s does not take the presence on topic %s: %s", self._name, self._status_topic, refusal)

    def _settle(self, packet_id: int, reason: ReasonCode) -> None:
        topic, outcome = self._published.pop(packet_id, ("", None))
        if reason.is_failure:
            self._refused = topic
        elif topic == self._suspect[0]:
            self._suspect = ("", 0)
        if outcome is not None and not outcome.done():
            outcome.set_result(reason)

    def _take(self, message: MQTTMessage) -> None:
        if self._stopping:  # whoever comes next gets it, if its QoS is 1
            self._finished += 1
            return
        delivery = Delivery(message.mid)
        if message.qos:
            self._deliveries.append(delivery)
        self._in_background(self._work(message, delivery)).add_done_callback(self._count_finished)

    def _count_finished(self, _task: asyncio.Task[None]) -> None:
        self._finished += 1

    async def _work(self, message: MQTTMessage, delivery: Delivery) -> None:
        """From a message to its acknowledgement."""
        await self._ours.wait()
        if message.topic not in self._subscribed:
            self._client.unsubscribe(message.topic)  # the session remembers what was served once
        async with self._may_handle:
            try:
                await self._handle(message)
            except Exception:
                logger.exception("a message on %s was not handled", message.topic)
        delivery.handled = True
        # In the order of arrival, as the specification demands.
        while self._deliveries and self._deliveries[0].handled:
            self._client.ack(self._deliveries.popleft().packet_id, 1)

    def _in_background(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
