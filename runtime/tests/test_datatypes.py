# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""All datatypes, and that every way to carry a tensor carries the same."""

import json
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from edgeml_runtime.codecs import open_inference_grpc_pb2 as messages
from onnx_models import every_type
from serving import Server

# Two rows of two: extremes, and values that neighbouring types would change.
VALUES: dict[str, list[Any]] = {
    "BOOL": [True, False, False, True],
    "UINT8": [0, 1, 128, 255],
    "UINT16": [0, 256, 32768, 65535],
    "UINT32": [0, 65536, 2**31, 2**32 - 1],
    "UINT64": [0, 2**53 + 1, 2**63, 2**64 - 1],
    "INT8": [-128, -1, 0, 127],
    "INT16": [-32768, -129, 128, 32767],
    "INT32": [-(2**31), -32769, 32768, 2**31 - 1],
    "INT64": [-(2**63), -(2**53) - 1, 2**53 + 1, 2**63 - 1],
    "FP16": [0.5, -0.25, 65504.0, 6.103515625e-05],
    "FP32": [0.5, -1.25, 3.4028234663852886e38, 1.401298464324817e-45],
    "FP64": [0.1, -1e300, 1.7976931348623157e308, 5e-324],
    "BYTES": ["", "plain", "Grüße, 世界", "with\u0000zero"],
}
NUMPY = {
    "BOOL": "?",
    "UINT8": "<u1",
    "UINT16": "<u2",
    "UINT32": "<u4",
    "UINT64": "<u8",
    "INT8": "<i1",
    "INT16": "<i2",
    "INT32": "<i4",
    "INT64": "<i8",
    "FP16": "<f2",
    "FP32": "<f4",
    "FP64": "<f8",
}
CONTENTS = {
    "BOOL": "bool_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}


@pytest.fixture(scope="module")
def typed_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose model has all datatypes that have typed contents in gRPC: all but FP16."""
    model = every_type(tmp_path_factory.mktemp("typed_model"), tuple(CONTENTS))
    running = Server.start(tmp_path_factory.mktemp("typed_server"), [model])
    try:
        running.wait_ready()
        yield running
    finally:
        running.end()


def raw(datatype: str) -> bytes:
    """The values as the specification lays them out, made without the server's code."""
    if datatype == "BYTES":
        encoded = [value.encode() for value in VALUES[datatype]]
        return b"".join(struct.pack("<I", len(value)) + value for value in encoded)
    return np.array(VALUES[datatype], dtype=NUMPY[datatype]).tobytes()


def rest_inputs(**of_tensor: Any) -> list[dict[str, Any]]:
    return [{"name": f"in_{datatype}", "datatype": datatype, "shape": [2, 2], **of_tensor} for datatype in VALUES]


def message(datatypes: list[str]) -> messages.ModelInferRequest:
    request = messages.ModelInferRequest(model_name="every_type")
    for datatype in datatypes:
        request.inputs.add(name=f"in_{datatype}", datatype=datatype, shape=[2, 2])
    return request


def expect_raw(response: messages.ModelInferResponse) -> None:
    assert [(output.name, output.datatype, list(output.shape)) for output in response.outputs] == [
        (f"out_{datatype}", datatype, [2, 2]) for datatype in VALUES
    ]
    assert list(response.raw_output_contents) == [raw(datatype) for datatype in VALUES]


def test_json(server: Server) -> None:
    inputs = rest_inputs()
    for tensor in inputs:
        tensor["data"] = VALUES[tensor["datatype"]]
    outputs = server.infer("every_type", {"inputs": inputs}).json["outputs"]
    assert [(output["name"], output["datatype"], output["shape"]) for output in outputs] == [
        (f"out_{datatype}", datatype, [2, 2]) for datatype in VALUES
    ]
    for output in outputs:
        expected = VALUES[output["datatype"]]
        if output["datatype"] in ("FP16", "FP32"):  # written with as few digits as its type needs
            output["data"] = np.array(output["data"], dtype=NUMPY[output["datatype"]]).tolist()
        assert output["data"] == expected
        assert [type(value) for value in output["data"]] == [type(value) for value in expected]


def test_binary(server: Server) -> None:
    inputs = rest_inputs()
    for tensor in inputs:
        tensor["parameters"] = {"binary_data_size": len(raw(tensor["datatype"]))}
    head = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}}).encode()
    body = head + b"".join(raw(datatype) for datatype in VALUES)
    answer = server.infer("every_type", body, Inference_Header_Content_Length=str(len(head)))
    assert answer.body[int(answer.headers["inference-header-content-length"]) :] == body[len(head) :]


def test_grpc_raw(server: Server) -> None:
    request = message(list(VALUES))
    request.raw_input_contents.extend(raw(datatype) for datatype in VALUES)
    expect_raw(server.grpc("ModelInfer", request))


def test_grpc_typed(typed_server: Server) -> None:
    request = message(list(CONTENTS))
    for tensor in request.inputs:
        values = VALUES[tensor.datatype]
        contents = [value.encode() for value in values] if tensor.datatype == "BYTES" else values
        getattr(tensor.contents, CONTENTS[tensor.datatype]).extend(contents)
    response = typed_server.grpc("ModelInfer", request)
    assert [output.datatype for output in response.outputs] == list(CONTENTS)
    assert list(response.raw_output_contents) == [raw(datatype) for datatype in CONTENTS]


@pytest.mark.parametrize(
    ("datatype", "wrong"),
    [("UINT8", 256), ("UINT16", 65536), ("INT8", -129), ("INT16", 32768), ("BYTES", b"\xff")],
)
def test_typed_value_out_of_range(typed_server: Server, datatype: str, wrong: Any) -> None:
    request = message(list(CONTENTS))
    for tensor in request.inputs:
        values = VALUES[tensor.datatype]
        contents = [value.encode() for value in values] if tensor.datatype == "BYTES" else list(values)
        if tensor.datatype == datatype:
            contents[1] = wrong
        getattr(tensor.contents, CONTENTS[tensor.datatype]).extend(contents)
    code, details = typed_server.grpc_error("ModelInfer", request)
    assert code == "INVALID_ARGUMENT"
    assert f"in_{datatype}'" in details


def test_typed_contents_in_another_field(typed_server: Server) -> None:
    request = message(list(CONTENTS))
    for tensor in request.inputs:
        tensor.contents.fp64_contents.extend([1.0] * 4)
    code, details = typed_server.grpc_error("ModelInfer", request)
    assert (code, details) == ("INVALID_ARGUMENT", "input 'in_BOOL': 0 elements, shape [2, 2] needs 4")


def test_fp16_has_no_typed_contents(server: Server) -> None:
    request = message(["FP16"])
    request.inputs[0].contents.fp32_contents.extend([1.0] * 4)
    code, details = server.grpc_error("ModelInfer", request)
    assert (code, details) == ("INVALID_ARGUMENT", "input 'in_FP16': FP16 must be in raw_input_contents")


def test_metadata_names_the_datatypes(server: Server) -> None:
    metadata = server.grpc("ModelMetadata", messages.ModelMetadataRequest(name="every_type"))
    assert [tensor.datatype for tensor in metadata.inputs] == list(VALUES)
    assert [list(tensor.shape) for tensor in metadata.outputs] == [[-1, 2]] * len(VALUES)


@pytest.mark.parametrize(
    ("datatype", "wrong"),
    [
        ("BOOL", 1),
        ("UINT8", 256),
        ("UINT8", -1),
        ("UINT8", 1.0),
        ("UINT64", 2**64),
        ("INT8", -129),
        ("INT64", 2**63),
        ("INT64", True),
        ("FP16", 1e6),
        ("FP32", 10**40),
        ("FP64", "1"),
        ("BYTES", 1),
        ("BYTES", ["nested"]),
    ],
)
def test_json_value_of_another_type(server: Server, datatype: str, wrong: Any) -> None:
    inputs = rest_inputs()
    for tensor in inputs:
        tensor["data"] = list(VALUES[tensor["datatype"]])
        if tensor["datatype"] == datatype:
            tensor["data"][3] = wrong
    answer = server.infer("every_type", {"inputs": inputs})
    assert answer.status == 400
    assert f"in_{datatype}" in answer.json["error"]


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (b"\x01\0\0", "within the length"),
        (b"\x05\0\0\0abc", "within an element"),
        (b"\xff\xff\xff\xff", "within an element"),
        (b"\x01\0\0\0a" * 3, "3 elements"),
        (b"\x01\0\0\0\xff" * 4, "must be UTF-8"),
    ],
)
def test_malformed_bytes(server: Server, wrong: bytes, reason: str) -> None:
    request = message(list(VALUES))
    request.raw_input_contents.extend(wrong if datatype == "BYTES" else raw(datatype) for datatype in VALUES)
    code, details = server.grpc_error("ModelInfer", request)
    assert code == "INVALID_ARGUMENT"
    assert reason in details


def test_any_byte_but_zero_is_true(server: Server) -> None:
    request = message(list(VALUES))
    request.raw_input_contents.extend(b"\0\x01\x02\xff" if datatype == "BOOL" else raw(datatype) for datatype in VALUES)
    response = server.grpc("ModelInfer", request)
    assert response.raw_output_contents[list(VALUES).index("BOOL")] == b"\0\x01\x01\x01"


def test_not_a_number_is_null_in_json_and_kept_in_binary(server: Server) -> None:
    request = message(list(VALUES))
    special = np.array([np.nan, np.inf, -np.inf, 1.0], dtype="<f4").tobytes()
    request.raw_input_contents.extend(special if datatype == "FP32" else raw(datatype) for datatype in VALUES)
    response = server.grpc("ModelInfer", request)
    assert response.raw_output_contents[list(VALUES).index("FP32")] == special
    inputs = rest_inputs()
    for tensor in inputs:
        tensor["parameters"] = {"binary_data_size": len(raw(tensor["datatype"]))}
    head = json.dumps({"inputs": inputs, "outputs": [{"name": "out_FP32"}]}).encode()
    body = head + b"".join(special if datatype == "FP32" else raw(datatype) for datatype in VALUES)
    answer = server.infer("every_type", body, Inference_Header_Content_Length=str(len(head)))
    assert answer.json["outputs"][0]["data"] == [None, None, None, 1.0]
