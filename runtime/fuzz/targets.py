# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""What is fuzzed: functions that take any bytes and fail when a parser breaks its word.

A parser gives a request that fits the model, or raises RequestError with the right failure. It
raises nothing else, and takes no more memory than ``MEMORY_FACTOR`` times its input and
``MEMORY_ALLOWANCE`` bytes. Targets with "peers" in their name compare a whole server with others.
"""

import json
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import TypeVar
from unittest.mock import patch

import http2
from edgeml_runtime.codecs import json_binary, portions, protobuf
from edgeml_runtime.codecs.compression import accepted, decompress
from edgeml_runtime.config import Limits
from edgeml_runtime.errors import Failure, RequestError
from edgeml_runtime.inference import InferenceRequest
from grpc_peers import GrpcPeers, calls
from http2_target import Grpc
from http_cases import CASES, LAST
from http_peers import HttpPeers
from http_target import Rest
from mutation import Choices, compressed, damaged, http2_frames, http_request, json_request, protobuf_request
from signatures import MODELS, Broken, Model, check_request, echo
from wire import LIMITS

T = TypeVar("T")

# The worst JSON is a list of one-entry objects: about 30 bytes of Python objects for each byte.
MEMORY_FACTOR = 64
MEMORY_ALLOWANCE = 1 << 20
# From half of it on, JSON is read in the way for large bodies.
LARGE_BYTES = 8192


def json_bytes(data: bytes) -> None:
    """Any bytes as a JSON body."""
    model = MODELS[data[0] % len(MODELS)] if data else MODELS[0]
    _decode_json(model, data[1:], None)


def json_structured(data: bytes) -> None:
    """Almost valid REST bodies."""
    choices = Choices(data)
    model = choices.of(MODELS)
    _decode_json(model, *json_request(model, choices))


def large_json_bytes(data: bytes) -> None:
    """Any bytes as a JSON body, small and large: each way to read them has to say the same."""
    model = MODELS[data[0] % len(MODELS)] if data else MODELS[0]
    _compare_large(model, data[1:])


def large_json_structured(data: bytes) -> None:
    """Almost valid JSON bodies, small and large."""
    choices = Choices(data)
    model = choices.of(MODELS)
    body, json_length = json_request(model, choices)
    _compare_large(model, body if json_length is None else body[:json_length])


def portions_bytes(data: bytes) -> None:
    """Any bytes as a JSON body, read at once and in portions."""
    model = MODELS[data[0] % len(MODELS)] if data else MODELS[0]
    _compare_portions(model, data[1:])


def portions_structured(data: bytes) -> None:
    """Almost valid JSON bodies, read at once and in portions."""
    choices = Choices(data)
    model = choices.of(MODELS)
    body, json_length = json_request(model, choices)
    _compare_portions(model, body if json_length is None else body[:json_length])


def protobuf_bytes(data: bytes) -> None:
    """Any bytes as a ModelInferRequest, and as a message that names a model."""
    model = MODELS[data[0] % len(MODELS)] if data else MODELS[0]
    with suppress(RequestError):
        protobuf.parse_model(data)
    _decode_protobuf(model, data[1:])


def protobuf_structured(data: bytes) -> None:
    """Almost valid ModelInferRequests."""
    choices = Choices(data)
    model = choices.of(MODELS)
    _decode_protobuf(model, protobuf_request(model, choices))


def compressed_bytes(data: bytes) -> None:
    """Any bytes as a compressed body, and as an Accept-Encoding header."""
    accepted(data.decode("latin-1"))
    for coding in ("gzip", "deflate"):
        _decompress(data, coding)


def compressed_structured(data: bytes) -> None:
    """Compressed bodies, some of them bombs."""
    choices = Choices(data)
    body = choices.bytes(choices.below(64)) * choices.below(256)
    packed, coding, is_whole = compressed(body, choices)
    unpacked = _decompress(packed, coding)
    if is_whole and unpacked != body:
        raise Broken(f"{coding} of {body!r} became {unpacked!r}")


def http_bytes(data: bytes) -> None:
    """Any bytes as what an HTTP client sends, in one piece and in small ones."""
    pieces = [data[index : index + 7] for index in range(0, len(data), 7)]
    for parts in ([data], pieces):
        _bounded(len(data), lambda parts=parts: REST.converse(parts, ends=True))  # type: ignore[misc]


def http_structured(data: bytes) -> None:
    """Almost valid HTTP requests, several on a connection, cut into pieces anywhere."""
    choices = Choices(data)
    sent = b""
    for _ in range(1 + choices.below(4)):
        model = choices.of(MODELS)
        body, json_length = json_request(model, choices)
        path = choices.of(
            [
                *(f"/v2/models/{model.name}/infer", f"/v2/models/{model.name}/versions/1.0.0/infer"),
                *("/v2/health/ready", f"/v2/models/{model.name}", "/v2", "/%ff/%00?a", "//", "*", "http://a/v2"),
            ]
        )
        sent += http_request(path, body, json_length, choices)
    cuts = sorted(choices.below(min(len(sent), 65535) + 1) for _ in range(choices.below(6)))
    parts = [sent[start:end] for start, end in zip([0, *cuts], [*cuts, len(sent)], strict=True)]
    _bounded(len(sent), lambda: REST.converse(parts, ends=bool(choices.below(2))))


def http2_bytes(data: bytes) -> None:
    """Any bytes behind the preface of HTTP/2, in one piece and in small ones."""
    sent = http2.PREFACE + data
    pieces = [sent[index : index + 7] for index in range(0, len(sent), 7)]
    for parts in ([sent], pieces):
        _bounded(len(sent), lambda parts=parts: GRPC.converse(parts, ends=True))  # type: ignore[misc]


def http2_structured(data: bytes) -> None:
    """Almost valid frames of HTTP/2 with gRPC calls, cut into pieces anywhere."""
    choices = Choices(data)
    sent = http2.PREFACE + b"".join(
        http2_frames(protobuf_request(choices.of(MODELS), choices), choices) for _ in range(1 + choices.below(8))
    )
    cuts = sorted(choices.below(min(len(sent), 65535) + 1) for _ in range(choices.below(6)))
    parts = [sent[start:end] for start, end in zip([0, *cuts], [*cuts, len(sent)], strict=True)]
    _bounded(len(sent), lambda: GRPC.converse(parts, ends=bool(choices.below(2))))


def http_peers_bytes(data: bytes) -> None:
    """Any bytes to our HTTP/1.1 server and to uvicorn's, in one piece and in small ones."""
    _http_peers().compare([data])
    _http_peers().compare([data[index : index + 7] for index in range(0, len(data), 7)])


def http_peers_structured(data: bytes) -> None:
    """Almost valid HTTP requests, and some of the corpus, to our server and to uvicorn's."""
    choices = Choices(data)
    sent = b""
    for _ in range(1 + choices.below(4)):
        if choices.below(2):
            sent += choices.of(CASES).sent
        else:
            body = choices.bytes(choices.below(64))
            sent += http_request(choices.of(["/a", "/b?x=1", "http://a/v2", "*", "//"]), body, None, choices)
    sent += LAST
    if choices.below(2):
        sent = damaged(sent, choices)
    cuts = sorted(choices.below(min(len(sent), 65535) + 1) for _ in range(choices.below(4)))
    _http_peers().compare([sent[start:end] for start, end in zip([0, *cuts], [*cuts, len(sent)], strict=True)])


def grpc_peers_structured(data: bytes) -> str | None:
    """Right and odd gRPC calls to our server and to grpcio's."""
    return _grpc_peers().compare(calls(Choices(data)))


REST = Rest()
GRPC = Grpc()
_http_peers = cache(HttpPeers)
_grpc_peers = cache(GrpcPeers)  # not before it is needed: it opens a port

#: Each gives None, or why nothing can be said of its input.
TARGETS: dict[str, Callable[[bytes], str | None]] = {
    function.__name__: function
    for function in (
        json_bytes,
        json_structured,
        large_json_bytes,
        large_json_structured,
        portions_bytes,
        portions_structured,
        protobuf_bytes,
        protobuf_structured,
        compressed_bytes,
        compressed_structured,
        http_bytes,
        http_structured,
        http2_bytes,
        http2_structured,
        http_peers_bytes,
        http_peers_structured,
        grpc_peers_structured,
    )
}


def seeds(target: str) -> list[bytes]:
    """Valid requests for the targets that take bytes as they are; the others make their own."""
    if target in ("json_bytes", "large_json_bytes", "portions_bytes"):
        return [bytes([index]) + json_request(model, Choices(b""))[0] for index, model in enumerate(MODELS)]
    if target == "protobuf_bytes":
        return [bytes([index]) + protobuf_request(model, Choices(b"")) for index, model in enumerate(MODELS)]
    if target == "http_bytes":
        return [http_request("/v2/models/single/infer", *json_request(MODELS[0], Choices(b"")), Choices(b""))]
    if target == "http_peers_bytes":
        return [case.sent + LAST for case in CASES]
    if target == "http2_bytes":
        calls = (http2_frames(protobuf_request(model, Choices(b"")), Choices(b"")) for model in MODELS[:1])
        return [http2.frame(http2.SETTINGS, 0, 0) + b"".join(calls)]
    if target == "compressed_bytes":
        return [compressed(b"text" * 10, Choices(bytes([index])))[0] for index in range(4)]
    return []


def _decode_json(model: Model, body: bytes, json_length: int | None) -> None:
    decoded = _bounded(len(body), lambda: json_binary.decode(model, body, json_length, Limits()))
    if decoded is None:
        return
    request, in_binary = decoded
    check_request(model, request)
    if not in_binary <= set(request.outputs):
        raise Broken(f"binary outputs {in_binary}, requested are {request.outputs}")
    answer, head = json_binary.encode(model, request, echo(request), in_binary)
    json.loads(answer[:head])


def _compare_large(model: Model, body: bytes) -> None:
    small, large = (
        _outcome(model, lambda text=text: json_binary.decode(model, text, None, Limits()))  # type: ignore[misc]
        for text in (body, body + b" " * LARGE_BYTES)
    )
    if small != large:
        raise Broken(f"{body!r} means {small}, when it is large {large}")


def _compare_portions(model: Model, body: bytes) -> None:
    def outcome() -> object:
        return _outcome(model, lambda: json_binary.decode(model, body, None, Limits()))

    usual = outcome()
    with patch.multiple(json_binary, _LARGE=0, _PORTIONED=0), patch.multiple(portions, _WINDOW=16, _SMALL=0):
        seen = outcome()
    # Tensors without elements are not read in portions.
    is_refused = isinstance(usual, Failure) or b"[]" in b"".join(body.split())
    if seen != usual and not (is_refused and isinstance(seen, Failure)):
        raise Broken(f"{body!r} means {usual}, read in portions {seen}")


def _outcome(model: Model, decode: Callable[[], tuple[InferenceRequest, set[str]]]) -> object:
    try:
        request, in_binary = decode()
    except RequestError as error:
        return error.failure
    check_request(model, request)
    values = {
        name: (array.shape, array.tolist() if array.dtype == object else array.tobytes())
        for name, array in request.inputs.items()
    }
    return values, request.outputs, in_binary, request.id, request.timeout, request.sequence


def _decompress(body: bytes, coding: str) -> bytes | None:
    # What the limit allows is no growth beyond the input.
    limit = LIMITS["body_bytes"]
    unpacked = _bounded(len(body) + limit, lambda: decompress(coding, body, limit))
    if unpacked is not None and len(unpacked) > limit:
        raise Broken(f"{len(unpacked)} bytes were decompressed, {limit} are allowed")
    return unpacked


def _decode_protobuf(model: Model, body: bytes) -> None:
    def decode() -> InferenceRequest:
        return protobuf.decode(model, protobuf.parse_inference(body, Limits()), Limits())

    request = _bounded(len(body), decode)
    small = _outcome(model, lambda: (decode(), set()))
    protobuf.LARGE, before = 0, protobuf.LARGE
    large = _outcome(model, lambda: (decode(), set()))
    protobuf.LARGE = before
    # Of a large one the number of fields is bounded first.
    if small != large and not (isinstance(small, Failure) and isinstance(large, Failure)):
        raise Broken(f"{body!r} means {small}, when it is large {large}")
    if request is not None:
        check_request(model, request)
        protobuf.encode(model, request, echo(request))


def _bounded(size: int, parse: Callable[[], T]) -> T | None:
    """The result of a parser, None when it refused its input; Broken when it took too much memory."""
    result = None
    tracemalloc.start(1)
    try:
        result = parse()
    except RequestError as error:
        if error.failure not in (Failure.INVALID, Failure.TOO_LARGE):
            raise Broken(f"a parser said {error.failure}: {error}") from error
        if not str(error):
            raise Broken("an error without a message") from error
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()  # it slows all down that runs in this process
    if peak > MEMORY_FACTOR * size + MEMORY_ALLOWANCE:
        raise Broken(f"{size} bytes of input took {peak} bytes of memory")
    return result
