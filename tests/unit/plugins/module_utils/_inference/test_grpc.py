# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The gRPC client: its messages, and the forms of answers that servers choose."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc  # type: ignore[import-untyped]
import pytest
from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._inference.client import SlowError, UnreachableError
from ansible_collections.edgeml.fleet.plugins.module_utils._inference.connect import connect
from ansible_collections.edgeml.fleet.plugins.module_utils._inference.grpc import MESSAGES, decode_outputs
from ansible_collections.edgeml.fleet.plugins.module_utils._inference.protobuf import decode, encode
from ansible_collections.edgeml.fleet.plugins.module_utils._inference.tensor import DATATYPES, Tensor
from ansible_collections.edgeml.fleet.tests.support.open_inference import message_class

X = Tensor.from_values("x", "FP32", [2], [1.0, 2.0])
SAMPLES: dict[str, list[Any]] = {
    "BOOL": [True, False],
    "BYTES": [b"cat", b""],
    "FP32": [1.5, -2.5],
    "FP64": [1.5, -2.5],
    "INT8": [-128, 127],
    "INT16": [-(2**15), 2**15 - 1],
    "INT32": [-(2**31), 2**31 - 1],
    "INT64": [-(2**63), 2**63 - 1],
    "UINT8": [0, 255],
    "UINT16": [0, 2**16 - 1],
    "UINT32": [0, 2**32 - 1],
    "UINT64": [0, 2**64 - 1],
}
CONTENTS = {"BOOL": "bool", "BYTES": "bytes", "FP32": "fp32", "FP64": "fp64", "INT64": "int64", "UINT64": "uint64"}


def contents_field(datatype: str) -> str:
    return CONTENTS.get(datatype, "uint" if datatype.startswith("UINT") else "int") + "_contents"


def test_request_has_the_field_numbers_of_the_specification() -> None:
    with connect("grpc://127.0.0.1:22000") as client:
        body = client.prepare("m", "1", [X], ["y"]).body
    fields = (
        b"\x0a\x01m"  # model_name = 1
        b"\x12\x011"  # model_version = 2
        b"\x2a\x0c\x0a\x01x\x12\x04FP32\x1a\x01\x02"  # inputs = 5: name = 1, datatype = 2, shape = 3, packed
        b"\x32\x03\x0a\x01y"  # outputs = 6: name = 1
        b"\x3a\x08" + X.raw  # raw_input_contents = 7
    )
    assert body == fields


@pytest.mark.parametrize("datatype", SAMPLES)
def test_typed_and_raw_contents_are_the_same(datatype: str) -> None:
    values = SAMPLES[datatype]
    tensor = Tensor.from_values("y", datatype, [2], values)
    description = {"name": "y", "datatype": datatype, "shape": [2]}
    response = message_class("ModelInferResponse")
    typed = response(outputs=[description | {"contents": {contents_field(datatype): values}}])
    raw = response(outputs=[description], raw_output_contents=[tensor.raw])
    answers = [decode(MESSAGES, "ModelInferResponse", answer.SerializeToString()) for answer in (typed, raw)]
    assert [decode_outputs(answer) for answer in answers] == [[tensor]] * 2


def test_all_datatypes_but_fp16_have_typed_contents() -> None:
    assert set(DATATYPES) - set(SAMPLES) == {"FP16"}


@pytest.mark.parametrize(
    ("datatype", "raw"),
    [("FP32", [b"\x00" * 4]), ("FP32", [b"\x00" * 8] * 2), ("FP16", []), ("FP32", []), ("FP8", [])],
)
def test_contents_that_do_not_fit_are_refused(datatype: str, raw: list[bytes]) -> None:
    description = {"name": "y", "datatype": datatype, "shape": [2], "contents": None}
    answer = {"outputs": [description], "raw_output_contents": raw}
    with pytest.raises(ValueError, match=r"elements|raw contents|unknown datatype"):
        decode_outputs(answer)


def test_messages_are_those_of_the_library_of_protocol_buffers() -> None:
    values: dict[str, Any] = {
        "name": "m",
        "versions": ["1", "", "3"],
        "platform": "",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 2, 2**40]}],
        "outputs": [{"name": "", "datatype": "BYTES", "shape": []}],
        "properties": [{"key": "provider", "value": "CUDA"}],
    }
    theirs = message_class("ModelMetadataResponse")(**values).SerializeToString()
    assert encode(MESSAGES, "ModelMetadataResponse", values) == theirs
    assert decode(MESSAGES, "ModelMetadataResponse", theirs) == values
    # Numbers that are not packed, a field sent twice, and fields that we do not know, of each wire type.
    more = b"\x22\x04\x18\x05\x18\x06\x0a\x01n\xa8\x06\x01\xa9\x0612345678\xaa\x06\x01x\xad\x061234"
    read = decode(MESSAGES, "ModelMetadataResponse", theirs + more)
    assert (read["name"], read["inputs"][1]["shape"]) == ("n", [5, 6])


@pytest.mark.parametrize(
    "message",
    [
        b"\x0a",
        b"\x0a\x05abc",
        b"\x0a\x01\xff",
        b"\x08\x01",
        b"\x0b",
        b"\x02\x00",
        b"\xff" * 11,
        b"\x0a" + b"\xff" * 9 + b"\x01",
    ],
)
def test_damaged_messages_are_refused(message: bytes) -> None:
    with pytest.raises(ValueError):
        decode(MESSAGES, "ModelMetadataResponse", message)


class Behaviour(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Answers every method with bytes, or aborts with a status code."""

    def __init__(self) -> None:
        self.answer: bytes | grpc.StatusCode = b""
        self.metadata: dict[str, str] = {}

    def service(self, details: Any) -> Any:
        def answer(request: bytes, context: Any) -> bytes:
            self.metadata = dict(context.invocation_metadata())
            if isinstance(self.answer, bytes):
                return self.answer
            context.abort(self.answer, "because of the test")
            raise AssertionError("abort raises")

        return grpc.unary_unary_rpc_method_handler(answer)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[Behaviour, str]]:
    """A gRPC server on a unix socket, with its endpoint."""
    behaviour = Behaviour()
    server = grpc.server(ThreadPoolExecutor(1), handlers=[behaviour])
    server.add_insecure_port(f"unix:{tmp_path}/grpc.sock")
    server.start()
    with contextlib.ExitStack() as stack:
        stack.callback(lambda: server.stop(None).wait())
        yield behaviour, f"grpc+unix://{tmp_path}/grpc.sock"


@pytest.mark.parametrize(
    ("code", "kind", "message"),
    [
        (grpc.StatusCode.UNAVAILABLE, UnreachableError, "does not answer"),
        (grpc.StatusCode.DEADLINE_EXCEEDED, SlowError, "is slow: no answer within 10 s"),
        (grpc.StatusCode.UNAUTHENTICATED, FleetError, "refused the credentials"),
        (grpc.StatusCode.PERMISSION_DENIED, FleetError, "refused the credentials"),
        (grpc.StatusCode.UNIMPLEMENTED, FleetError, "does not follow the Open Inference Protocol"),
        (grpc.StatusCode.INVALID_ARGUMENT, FleetError, "refused a request for model 'm' version 2.0.0"),
        (grpc.StatusCode.NOT_FOUND, FleetError, "refused a request for model 'm' version 2.0.0"),
    ],
)
def test_status_codes(server: tuple[Behaviour, str], code: Any, kind: type[FleetError], message: str) -> None:
    behaviour, endpoint = server
    behaviour.answer = code
    with connect(endpoint, bearer_token="correct-horse") as client, pytest.raises(kind, match=message) as failure:
        client.infer("m", "2.0.0", [X])
    assert failure.value.seen == f"gRPC {code.name}: because of the test"
    assert failure.value.where == endpoint
    assert "correct-horse" not in str(failure.value)
    assert behaviour.metadata["authorization"] == "Bearer correct-horse"


def test_unknown_model_is_not_ready(server: tuple[Behaviour, str]) -> None:
    behaviour, endpoint = server
    behaviour.answer = grpc.StatusCode.NOT_FOUND
    with connect(endpoint) as client:
        status = client.model_ready("m")
    assert not status
    assert "NOT_FOUND" in status.seen


@pytest.mark.parametrize(("answer", "ok"), [(b"\x08\x01", True), (b"\x08\x00", False), (b"", False)])
def test_health_is_field_one(server: tuple[Behaviour, str], answer: bytes, ok: bool) -> None:
    behaviour, endpoint = server
    behaviour.answer = answer
    with connect(endpoint) as client:
        assert [bool(client.live()), bool(client.ready()), bool(client.model_ready("m"))] == [ok] * 3


def test_bytes_that_are_no_message(server: tuple[Behaviour, str]) -> None:
    behaviour, endpoint = server
    behaviour.answer = b"\xff\xff\xff"
    with connect(endpoint) as client:
        for ask in (client.live, client.server_metadata, lambda: client.infer("m", "", [X])):
            with pytest.raises(FleetError, match="does not follow the Open Inference Protocol"):
                ask()


def test_server_that_restarts_is_connected_to_again(tmp_path: Path) -> None:
    endpoint = f"grpc+unix://{tmp_path}/grpc.sock"
    behaviour = Behaviour()
    behaviour.answer = b"\x08\x01"
    with connect(endpoint) as client:
        for _start in range(2):
            server = grpc.server(ThreadPoolExecutor(1), handlers=[behaviour])
            server.add_insecure_port(f"unix:{tmp_path}/grpc.sock")
            server.start()
            assert client.ready()
            assert client.ready()
            server.stop(None).wait()
        with pytest.raises(UnreachableError, match="does not answer"):
            client.ready()


@pytest.mark.parametrize("size", [1, 16_384, 65_531, 3_000_000])
def test_large_tensors_pass_the_windows_of_both_sides(size: int, tmp_path: Path) -> None:
    class Echo(grpc.GenericRpcHandler):  # type: ignore[misc]
        def service(self, details: Any) -> Any:
            def answer(request: bytes, context: Any) -> bytes:
                tensor = decode(MESSAGES, "ModelInferRequest", request)
                return encode(
                    MESSAGES,
                    "ModelInferResponse",
                    {"outputs": tensor["inputs"], "raw_output_contents": tensor["raw_input_contents"]},
                )

            return grpc.unary_unary_rpc_method_handler(answer)

    unbounded = [("grpc.max_receive_message_length", -1)]
    server = grpc.server(ThreadPoolExecutor(1), handlers=[Echo()], options=unbounded)
    server.add_insecure_port(f"unix:{tmp_path}/grpc.sock")
    server.start()
    tensor = Tensor("x", "UINT8", (size,), bytes(range(256)) * (size // 256) + bytes(size % 256))
    with connect(f"grpc+unix://{tmp_path}/grpc.sock") as client:
        for _request in range(8):
            assert client.infer("m", "", [tensor]) == [tensor]
    server.stop(None).wait()
