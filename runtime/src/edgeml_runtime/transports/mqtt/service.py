# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""The protocol over MQTT 5: a topic per model for requests, answers on the topic that the request names.

Bodies are those of REST; what REST tells in headers, properties tell here. A request is acknowledged to the
broker only after the broker has acknowledged its answer. Specification: MQTT 5.0, section 4.10 (request and response).
"""

import logging
import math
from dataclasses import dataclass
from time import perf_counter

from paho.mqtt.client import MQTTMessage
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from edgeml_runtime.codecs import json_binary
from edgeml_runtime.codecs.request import check_same_tensors
from edgeml_runtime.config import Config, Mqtt
from edgeml_runtime.engine.engine import Engine
from edgeml_runtime.errors import Failure, RequestError, invalid
from edgeml_runtime.metrics import Metrics
from edgeml_runtime.request_log import log_request
from edgeml_runtime.transports.elsewhere import Elsewhere
from edgeml_runtime.transports.http.messages import STATUS
from edgeml_runtime.transports.listener import Listener
from edgeml_runtime.transports.mqtt.connection import BrokerConnection

_JSON_LENGTH = "inference-header-content-length"
_MODEL_VERSION = "model-version"
_MODEL_DIGEST = "model-digest"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    body: bytes
    json_length: int | None = None
    digest: str = ""


def connect(engine: Engine, metrics: Metrics, config: Config, mqtt: Mqtt) -> Listener:
    """Serve through a broker, now or as soon as it can be reached. Raises StartError for TLS files that do not fit."""
    service = _Service(engine, metrics, config, mqtt)
    connection = service.connection
    engine.on_change(connection.follow_topics)
    metrics.observe_broker(lambda: connection.connected)
    connection.start()
    return Listener(f"MQTT broker {mqtt.host}:{mqtt.port}", lambda: connection.stop(config.drain_seconds))


class _Service:
    def __init__(self, engine: Engine, metrics: Metrics, config: Config, mqtt: Mqtt) -> None:
        self._engine = engine
        self._metrics = metrics
        self._mqtt = mqtt
        self._limits = config.limits
        self._log_requests = config.log_requests
        self._elsewhere = Elsewhere()
        self._base = f"{mqtt.topic_prefix}/{mqtt.device}"
        self.connection = BrokerConnection(mqtt, self._limits.body_bytes, self._topics, self._serve, self._refuse)

    def _topics(self) -> set[str]:
        """Also of models that are not loaded: those requests get an error as their answer."""
        return {f"{self._base}/{model.name}/infer" for model in self._engine.index("mqtt")}

    async def _serve(self, message: MQTTMessage) -> None:
        arrived = perf_counter()
        topic = self._answer_topic(message)
        if not topic:
            logger.debug("a request on %s names no topic for its answer", message.topic)
            self._metrics.count_request("", "mqtt", "400")
            return
        answer = await self._infer(message, topic)
        refusal = await self._respond(message, topic, answer, arrived)
        if refusal:
            logger.warning("the MQTT broker does not take an answer on %s: %s", topic, refusal)
            error = RequestError(Failure.TOO_LARGE, f"the broker does not take the answer: {refusal}")
            await self._respond(message, topic, _error(error), arrived)

    def _refuse(self, message: MQTTMessage) -> None:
        maximum = self._mqtt.receive_maximum
        error = RequestError(Failure.TOO_MANY, f"{maximum} requests are under way, no more are taken with QoS 0")
        self._metrics.count_request("", "mqtt", str(STATUS[error.failure]))
        if topic := self._answer_topic(message):
            answer = _error(error)
            self.connection.send(topic, answer.body, _properties(message, answer, 0))

    def _answer_topic(self, message: MQTTMessage) -> str:
        """Where the answer goes; empty when nobody asks for it."""
        topic = str(getattr(message.properties, "ResponseTopic", ""))
        if not topic and self._mqtt.publish_results:
            return f"{self._base}/{self._model_name(message)}/result"
        return "" if any(character in topic for character in "+#\0") else topic

    def _model_name(self, message: MQTTMessage) -> str:
        return message.topic.removeprefix(f"{self._base}/").removesuffix("/infer")

    async def _infer(self, message: MQTTMessage, topic: str) -> _Answer:
        started = perf_counter()
        known = version = ""
        request = None
        try:
            if len(message.payload) > self._limits.body_bytes:
                raise RequestError(Failure.TOO_LARGE, f"the body is larger than {self._limits.body_bytes} bytes")
            asked = dict(getattr(message.properties, "UserProperty", ()))
            wanted = (self._model_name(message), asked.get(_MODEL_VERSION, ""), "mqtt")
            model = self._engine.model(*wanted)
            known, version = model.name, model.version
            json_length = _json_length(asked.get(_JSON_LENGTH))
            if json_binary.takes_long(model, message.payload, json_length, self._limits):
                limits = self._limits
                decoded = await self._elsewhere(json_binary.decode, model, message.payload, json_length, limits)
                request, in_binary = decoded
                before, model = model, self._engine.model(*wanted)
                check_same_tensors(before, model)
            else:
                limits = self._limits
                request, in_binary = json_binary.decode(model, message.payload, json_length, limits, in_portions=False)
            expiry = getattr(message.properties, "MessageExpiryInterval", None)
            if expiry == 0:
                raise RequestError(Failure.DEADLINE, "the message has expired")
            if expiry is not None:
                request.timeout = min(expiry, request.timeout or expiry)
            results = await model.infer(request)
            if json_binary.answer_takes_long(request, results, in_binary):
                encode = json_binary.encode
                body, json_length = await self._elsewhere(encode, model, request, results, in_binary)
            else:
                body, json_length = json_binary.encode(model, request, results, in_binary)
            answer = _Answer(200, body, json_length, model.digest)
            model.metrics.total(perf_counter() - started)
        except RequestError as error:
            answer = _error(error)
        except Exception:
            logger.exception("a request on %s failed", message.topic)
            answer = _error(RequestError(Failure.INTERNAL, "the server failed; its log says why"))
        self._metrics.count_request(known, "mqtt", str(answer.status))
        if self._log_requests:
            about = (known, version, str(answer.status), request.id if request else "", topic, perf_counter() - started)
            times = (request.queue_seconds, request.compute_seconds) if request else ()
            log_request("mqtt", *about, *times)
        return answer

    async def _respond(self, message: MQTTMessage, topic: str, answer: _Answer, arrived: float) -> str:
        """Publish an answer; gives why the broker does not take it, empty when it does."""
        properties = _properties(message, answer, perf_counter() - arrived)
        return await self.connection.publish(topic, answer.body, message.qos, properties)


def _error(error: RequestError) -> _Answer:
    return _Answer(STATUS[error.failure], json_binary.json_object(error=str(error)))


def _properties(message: MQTTMessage, answer: _Answer, elapsed: float) -> Properties:
    """Properties of an answer, ``elapsed`` seconds after the request; it expires when the request would."""
    properties = Properties(PacketTypes.PUBLISH)
    properties.ContentType = "application/json" if answer.json_length is None else "application/octet-stream"
    told = [("status", str(answer.status))]
    if answer.digest:
        told.append((_MODEL_DIGEST, answer.digest))
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
