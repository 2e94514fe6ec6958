# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""The protocol over MQTT 5, as a client of a broker: a topic per model for requests, answers where they ask for them.

A request is acknowledged to the broker only after the broker has acknowledged its answer: whoever dies in
between, the session keeps the request and the broker delivers it again. Receive Maximum bounds how many
requests the broker delivers before that. Specification: MQTT 5.0, sections 4.4 (delivery again), 4.6 (order of
acknowledgements), 4.9 (flow control) and 4.10 (request and response).

paho's network thread calls the methods ``_on_...``, which do little but pass on; all others run on the event loop.
"""

import asyncio
import logging
import math
import random
import ssl
import sys
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from paho.mqtt.client import Client, ConnectFlags, DisconnectFlags, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from edgeml_runtime import SERVER_NAME, __version__
from edgeml_runtime.codecs import json_binary
from edgeml_runtime.config import Config, Mqtt
from edgeml_runtime.engine.engine import Engine
from edgeml_runtime.errors import Failure, RequestError, StartError, invalid
from edgeml_runtime.metrics import Metrics
from edgeml_runtime.transports.http_messages import STATUS
from edgeml_runtime.transports.listener import Listener

_JSON_LENGTH = "inference-header-content-length"
_MODEL_VERSION = "model-version"

_SESSION_TAKEN_OVER = 0x8E
_LARGEST_PACKET = 268_435_455  # what MQTT can carry
_REQUEST_OVERHEAD = 64 * 1024  # topic and properties beside a body of the allowed size
_ANSWER_OVERHEAD = 1024  # the same beside the body of an answer, without what the client chose

_FIRST_DELAY_SECONDS, _LONGEST_DELAY_SECONDS = 1.0, 60.0
# The process that took the session over is to keep it; should it be gone by then, the session comes back.
_TAKEN_OVER_DELAY_SECONDS = 60.0
# The broker tells of a loss only when it lasts: neither a reconnect nor a successor makes the presence flicker.
_WILL_DELAY_SECONDS = 5
_GOODBYE_SECONDS = 2.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    body: bytes
    json_length: int | None = None
    digest: str = ""


@dataclass(slots=True)
class _Delivery:
    """A request that the broker waits to have acknowledged."""

    packet_id: int
    done: bool = False


def connect(engine: Engine, metrics: Metrics, config: Config, mqtt: Mqtt) -> Listener:
    """Serve through a broker, now or as soon as it can be reached. Raises StartError for TLS files that do not fit."""
    client = _BrokerClient(engine, metrics, config, mqtt)
    client.start()
    return Listener(f"MQTT broker {mqtt.host}:{mqtt.port}", client.stop)


class _BrokerClient:
    def __init__(self, engine: Engine, metrics: Metrics, config: Config, mqtt: Mqtt) -> None:
        self._engine = engine
        self._metrics = metrics
        self._mqtt = mqtt
        self._drain_seconds = config.drain_seconds
        self._base = f"{mqtt.topic_prefix}/{mqtt.device}"
        self._loop = asyncio.get_running_loop()
        self._client = self._new_client(config.limits.body_bytes)

        self._connected = False
        self._stopping = False
        self._disconnected = asyncio.Event()
        self._subscribed: set[str] = set()
        self._subscribing: dict[int, list[str]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._deliveries: deque[_Delivery] = deque()
        self._published: dict[int, asyncio.Future[ReasonCode]] = {}
        self._largest_packet = _LARGEST_PACKET
        self._may_publish = asyncio.Semaphore(1)
        #: Requests taken; only the network thread counts up, only the event loop counts the finished ones.
        self._taken = 0
        self._finished = 0
        #: Of the network thread.
        self._attempts = 0
        self._trouble = ""

    def start(self) -> None:
        """Connect in the background, for ever."""
        self._engine.on_change(self._follow_models)
        self._metrics.observe_broker(lambda: self._connected)
        self._client.loop_start()

    async def stop(self) -> None:
        """Take no more requests, finish those under way in bounded time, say goodbye.

        What is unfinished by then stays with the broker.
        """
        self._stopping = True
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=self._drain_seconds)
        with suppress(TimeoutError):
            async with asyncio.timeout(_GOODBYE_SECONDS):
                if self._connected:
                    await self._publish(f"{self._base}/status", _presence("offline"), qos=1, retain=True)
                self._client.disconnect()
                if self._connected:
                    await self._disconnected.wait()

    def _new_client(self, body_bytes: int) -> Client:
        mqtt = self._mqtt
        # Stable, so that the session outlives the process; brokers' access rules dislike slashes.
        client_id = f"{mqtt.topic_prefix}:{mqtt.device}".replace("/", ":")
        client = Client(CallbackAPIVersion.VERSION2, client_id, protocol=MQTTProtocolVersion.MQTTv5, manual_ack=True)
        client.suppress_exceptions = True  # they would end the network thread
        client.max_inflight_messages = 0  # paho does not know the broker's own Receive Maximum; _publish does
        client.on_connect = self._on_connect
        client.on_connect_fail = self._on_connect_fail
        client.on_disconnect = self._on_disconnect
        client.on_subscribe = self._on_subscribe
        client.on_message = self._on_message
        client.on_publish = self._on_publish
        if mqtt.username is not None:
            client.username_pw_set(mqtt.username, mqtt.password)
        if mqtt.ca is not None:
            client.tls_set_context(_tls_context(mqtt))
        will = Properties(PacketTypes.WILLMESSAGE)
        will.WillDelayInterval = _WILL_DELAY_SECONDS
        will.ContentType = "application/json"
        client.will_set(f"{self._base}/status", _presence("offline"), qos=1, retain=True, properties=will)
        session = Properties(PacketTypes.CONNECT)
        session.SessionExpiryInterval = mqtt.session_expiry_seconds
        session.ReceiveMaximum = mqtt.receive_maximum
        session.MaximumPacketSize = min(body_bytes + _REQUEST_OVERHEAD, _LARGEST_PACKET)
        client.connect_async(mqtt.host, mqtt.port, mqtt.keep_alive_seconds, clean_start=False, properties=session)
        return client

    # -- on paho's network thread ----------------------------------------------------------------------------------

    def _on_connect(
        self, _client: Client, _data: Any, flags: ConnectFlags, reason: ReasonCode, properties: Properties | None
    ) -> None:
        if reason.is_failure:
            self._tell(f"it refused the connection: {reason}")
            return  # paho reports a disconnect next
        self._attempts = 0
        self._trouble = ""
        self._pass_on(
            self._begin,
            flags.session_present,
            getattr(properties, "MaximumPacketSize", _LARGEST_PACKET),
            getattr(properties, "ReceiveMaximum", 65535),
        )

    def _on_connect_fail(self, _client: Client, _data: Any) -> None:
        self._tell(str(sys.exc_info()[1]))  # paho calls this where it handles the error
        self._wait(self._backoff())

    def _on_disconnect(
        self, _client: Client, _data: Any, flags: DisconnectFlags, reason: ReasonCode, _properties: Properties | None
    ) -> None:
        # The broker delivers again what is not acknowledged; the answers under way would come twice.
        self._client.drop_out_messages()
        if flags.is_disconnect_packet_from_server and reason == _SESSION_TAKEN_OVER:
            self._tell("another process serves this device now")
            self._wait(_TAKEN_OVER_DELAY_SECONDS)
        else:
            self._wait(self._backoff())
        self._pass_on(self._end, str(reason))

    def _on_subscribe(
        self, _client: Client, _data: Any, packet_id: int, reasons: list[ReasonCode], _properties: Properties
    ) -> None:
        self._pass_on(self._check_subscriptions, packet_id, reasons)

    def _on_message(self, _client: Client, _data: Any, message: MQTTMessage) -> None:
        if message.qos == 0 and self._taken - self._finished >= self._mqtt.receive_maximum:
            message.payload = b""  # Receive Maximum does not bound these
            self._pass_on(self._refuse, message)
            return
        self._taken += 1
        self._pass_on(self._take, message)

    def _on_publish(
        self, _client: Client, _data: Any, packet_id: int, reason: ReasonCode, _properties: Properties
    ) -> None:
        self._pass_on(self._settle, packet_id, reason)

    def _pass_on(self, callback: Callable[..., None], *arguments: Any) -> None:
        with suppress(RuntimeError):  # the loop has ended, and with it the process
            self._loop.call_soon_threadsafe(callback, *arguments)

    def _tell(self, trouble: str) -> None:
        """Log what keeps the broker away, once."""
        if trouble != self._trouble:
            self._trouble = trouble
            logger.warning("MQTT broker %s:%d: %s; trying again", self._mqtt.host, self._mqtt.port, trouble)

    def _backoff(self) -> float:
        longest = min(_FIRST_DELAY_SECONDS * 2**self._attempts, _LONGEST_DELAY_SECONDS)
        self._attempts = min(self._attempts + 1, 16)
        return random.uniform(longest / 2, longest)  # noqa: S311

    def _wait(self, seconds: float) -> None:
        """Before the next attempt; paho's own back-off has no jitter."""
        self._client.reconnect_delay_set(seconds, seconds)  # type: ignore[arg-type]  # it only ever adds and compares

    # -- on the event loop: the connection -------------------------------------------------------------------------

    def _begin(self, session_present: bool, largest_packet: int, receive_maximum: int) -> None:
        logger.info(
            "connected to MQTT broker %s:%d, %s session",
            *(self._mqtt.host, self._mqtt.port, "with the old" if session_present else "with a new"),
        )
        self._connected = True
        self._disconnected.clear()
        self._largest_packet = min(largest_packet, _LARGEST_PACKET)
        self._may_publish = asyncio.Semaphore(receive_maximum)
        self._subscribed.clear()
        self._follow_models()
        self._in_background(self._greet())

    async def _greet(self) -> None:
        await self._publish(f"{self._base}/status", _presence("online"), qos=1, retain=True)

    def _end(self, reason: str) -> None:
        if self._connected and not self._stopping:
            logger.warning("the connection to MQTT broker %s:%d ended: %s", self._mqtt.host, self._mqtt.port, reason)
        self._connected = False
        for task in self._tasks:
            task.cancel()
        self._deliveries.clear()
        self._published.clear()
        self._subscribing.clear()
        self._disconnected.set()

    def _follow_models(self) -> None:
        """Subscribe to what is configured, also to what is not loaded: those requests get an error as their answer."""
        if not self._connected:
            return
        wanted = {f"{self._base}/{model.name}/infer" for model in self._engine.index()}
        options = SubscribeOptions(qos=1, noLocal=True, retainHandling=SubscribeOptions.RETAIN_DO_NOT_SEND)
        if added := sorted(wanted - self._subscribed):
            _, packet_id = self._client.subscribe([(topic, options) for topic in added])
            if packet_id is not None:
                self._subscribing[packet_id] = added
        if removed := sorted(self._subscribed - wanted):
            self._client.unsubscribe(removed)
        self._subscribed = wanted

    def _check_subscriptions(self, packet_id: int, reasons: list[ReasonCode]) -> None:
        for topic, reason in zip(self._subscribing.pop(packet_id, ()), reasons, strict=False):
            if reason.value != 1:
                logger.error("the MQTT broker does not grant QoS 1 for topic %s: %s", topic, reason)

    async def _publish(
        self, topic: str, body: bytes, qos: int, retain: bool = False, properties: Properties | None = None
    ) -> ReasonCode:
        """Publish and wait: for the broker's acknowledgement, or with QoS 0 for the bytes to be written."""
        async with self._may_publish:
            information = self._client.publish(topic, body, qos, retain, properties)
            # The network thread passes the outcome on, so it cannot come before this.
            outcome: asyncio.Future[ReasonCode] = self._loop.create_future()
            self._published[information.mid] = outcome
            return await outcome

    def _settle(self, packet_id: int, reason: ReasonCode) -> None:
        outcome = self._published.pop(packet_id, None)
        if outcome is not None and not outcome.done():
            outcome.set_result(reason)

    def _in_background(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # -- on the event loop: requests -------------------------------------------------------------------------------

    def _take(self, message: MQTTMessage) -> None:
        if self._stopping:  # whoever comes next gets it, if its QoS is 1
            self._finished += 1
            return
        delivery = _Delivery(message.mid)
        if message.qos:
            self._deliveries.append(delivery)
        self._in_background(self._serve(message, delivery)).add_done_callback(self._count_finished)

    def _count_finished(self, _task: asyncio.Task[None]) -> None:
        self._finished += 1

    def _refuse(self, message: MQTTMessage) -> None:
        if not self._stopping and (topic := self._answer_topic(message)):
            maximum = self._mqtt.receive_maximum
            error = RequestError(Failure.TOO_MANY, f"{maximum} requests are under way, no more are taken with QoS 0")
            self._client.publish(topic, _error(error).body, properties=_properties(message, _error(error), 0))
        self._metrics.count_request("", "mqtt", str(STATUS[Failure.TOO_MANY]))

    async def _serve(self, message: MQTTMessage, delivery: _Delivery) -> None:
        """From a request to its acknowledgement. Cancelled when the connection ends."""
        started = perf_counter()
        try:
            topic = self._answer_topic(message)
            if topic:
                answer = await self._infer(message)
                await self._respond(message, topic, answer, started)
            else:
                logger.debug("a request on %s names no topic for its answer", message.topic)
                self._metrics.count_request("", "mqtt", "400")
        except Exception:
            logger.exception("a request on %s failed", message.topic)
        delivery.done = True
        # In the order of arrival, as the specification demands.
        while self._deliveries and self._deliveries[0].done:
            self._client.ack(self._deliveries.popleft().packet_id, 1)

    def _answer_topic(self, message: MQTTMessage) -> str:
        """Where the answer goes; empty when nobody asks for it."""
        topic = str(getattr(message.properties, "ResponseTopic", ""))
        if not topic and self._mqtt.publish_results:
            return f"{self._base}/{self._model_name(message)}/result"
        return "" if any(character in topic for character in "+#\0") else topic

    def _model_name(self, message: MQTTMessage) -> str:
        return message.topic.removeprefix(f"{self._base}/").removesuffix("/infer")

    async def _infer(self, message: MQTTMessage) -> _Answer:
        started = perf_counter()
        known = ""
        try:
            asked = dict(getattr(message.properties, "UserProperty", ()))
            model = self._engine.model(self._model_name(message), asked.get(_MODEL_VERSION, ""))
            known = model.name
            request, in_binary = json_binary.decode(
                model, bytes(message.payload), _json_length(asked.get(_JSON_LENGTH))
            )
            expiry = getattr(message.properties, "MessageExpiryInterval", None)
            if expiry == 0:
                raise RequestError(Failure.DEADLINE, "the message has expired")
            if expiry is not None:
                request.timeout = min(expiry, request.timeout or expiry)
            results = await model.infer(request)
            body, json_length = json_binary.encode(model, request, results, in_binary)
            answer = _Answer(200, body, json_length, model.digest)
            model.metrics.total(perf_counter() - started)
        except RequestError as error:
            answer = _error(error)
        except Exception:
            logger.exception("a request on %s failed", message.topic)
            answer = _error(RequestError(Failure.INTERNAL, "the server failed; its log says why"))
        self._metrics.count_request(known, "mqtt", str(answer.status))
        return answer

    async def _respond(self, message: MQTTMessage, topic: str, answer: _Answer, started: float) -> None:
        """Publish the answer, or why the broker does not take it."""
        refusal = await self._offer(message, topic, answer, started)
        if refusal:
            logger.warning("the MQTT broker does not take an answer on %s: %s", topic, refusal)
            error = RequestError(Failure.TOO_LARGE, f"the broker does not take the answer: {refusal}")
            await self._offer(message, topic, _error(error), started)

    async def _offer(self, message: MQTTMessage, topic: str, answer: _Answer, started: float) -> str:
        """Publish an answer; why the broker does not take it, empty when it does."""
        properties = _properties(message, answer, perf_counter() - started)
        correlation: bytes = getattr(properties, "CorrelationData", b"")
        size = len(answer.body) + len(topic.encode()) + len(correlation) + _ANSWER_OVERHEAD
        if size > self._largest_packet:
            # Sent all the same, it would end the connection, and again with every delivery of the request.
            return f"a message of {size} bytes, at most {self._largest_packet} are allowed"
        reason = await self._publish(topic, answer.body, message.qos, properties=properties)
        return str(reason) if reason.is_failure else ""


def _tls_context(mqtt: Mqtt) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=mqtt.ca)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if mqtt.certificate is not None:
        try:
            context.load_cert_chain(mqtt.certificate, mqtt.key)
        except (OSError, ssl.SSLError) as error:
            raise StartError(f"mqtt.tls.certificate {mqtt.certificate} with mqtt.tls.key {mqtt.key}: {error}") from None
    return context


def _presence(state: str) -> bytes:
    return json_binary.json_object(state=state, server=SERVER_NAME, version=__version__)


def _error(error: RequestError) -> _Answer:
    return _Answer(STATUS[error.failure], json_binary.json_object(error=str(error)))


def _properties(message: MQTTMessage, answer: _Answer, elapsed: float) -> Properties:
    """The answer expires when the request would, ``elapsed`` seconds after which it comes."""
    properties = Properties(PacketTypes.PUBLISH)
    properties.ContentType = "application/json" if answer.json_length is None else "application/octet-stream"
    told = [("status", str(answer.status))]
    if answer.digest:
        told.append(("model-digest", answer.digest))
    if answer.json_length is not None:
        told.append((_JSON_LENGTH, str(answer.json_length)))
    properties.UserProperty = told
    correlation = getattr(message.properties, "CorrelationData", None)
    if correlation is not None:
        properties.CorrelationData = correlation
    expiry = getattr(message.properties, "MessageExpiryInterval", None)
    if expiry is not None:
        properties.MessageExpiryInterval = max(1, math.ceil(expiry - elapsed))
    return properties


def _json_length(value: str | None) -> int | None:
    if value is None:
        return None
    if not value.isascii() or not value.isdigit() or len(value) > 18:
        raise invalid(f"user property {_JSON_LENGTH} is {value!r}, not a number of bytes")
    return int(value)
