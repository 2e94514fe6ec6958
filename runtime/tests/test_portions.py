# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Bodies that are read in portions mean what they mean when they are read at once; and what is refused before."""

import json
import os
import tracemalloc
from mmap import MAP_ANONYMOUS, MAP_PRIVATE, mmap
from typing import Any

import numpy as np
import pytest
from edgeml_runtime.codecs import json_binary, large_protobuf, portions, protobuf
from edgeml_runtime.codecs import open_inference_grpc_pb2 as messages
from edgeml_runtime.codecs.request import check_same_tensors
from edgeml_runtime.config import Limits
from edgeml_runtime.errors import Failure, RequestError
from edgeml_runtime.inference import InferenceRequest
from edgeml_runtime.tensors import DTYPES, TensorSpec
from hostile import forget_peak
from hypothesis import example, given, settings
from hypothesis import strategies as some
from in_process import peak_bytes, resident_bytes
from json_tensors import SPECS, Model, decoded, tensors

LIMITS = Limits()
MIB = 1 << 20


@given(
    given_tensors=some.lists(tensors(), min_size=1, max_size=2),
    damage=some.none() | some.tuples(some.floats(0, 1), some.binary(max_size=2)),
    indent=some.sampled_from([None, 1]),
    window=some.integers(1, 40),
)
@example(
    given_tensors=[{"name": "UINT8", "datatype": "UINT8", "shape": [2, 2], "data": [[1, 2], [3, 4]]}],
    damage=None,
    indent=1,
    window=1,
)
@settings(deadline=None, max_examples=600)
def test_both_ways_agree(
    given_tensors: list[dict[str, Any]], damage: tuple[float, bytes] | None, indent: int | None, window: int
) -> None:
    """The same tensors; what is refused at once is refused in portions, if in other words."""
    names = {tensor["name"] for tensor in given_tensors}
    model = Model("m", "1.0.0", "", "", {name: SPECS[name] for name in names}, {})
    body = json.dumps({"inputs": given_tensors, "id": "[]"}, indent=indent).encode()
    if damage is not None:
        cut = int(damage[0] * len(body))
        body = body[:cut] + damage[1] + body[cut + len(damage[1]) :]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_binary, "_LARGE", 10**9)
        usual = decoded(model, body)
        patch.setattr(json_binary, "_LARGE", 0)
        patch.setattr(json_binary, "_PORTIONED", 0)
        patch.setattr(portions, "_WINDOW", window)
        patch.setattr(portions, "_SMALL", 0)
        seen = decoded(model, body)
    accepted = usual.startswith("(")
    if accepted and "[]" not in body.replace(b'"[]"', b"").decode(errors="replace").replace(" ", ""):
        assert seen == usual
    elif not accepted:
        assert not seen.startswith("("), (seen, usual)


def body(data: bytes, shape: list[int], datatype: str = "FP32") -> bytes:
    head = {"name": "x", "datatype": datatype, "shape": shape, "data": 0}
    return json.dumps({"inputs": [head]}).encode().replace(b'"data": 0', b'"data": [' + data + b"]")


def decode(data: bytes, shape: list[int], datatype: str = "FP32") -> np.ndarray[Any, Any]:
    model = Model("m", "1.0.0", "", "", {"x": TensorSpec("x", datatype, ())}, {})
    request, _ = json_binary.decode(model, body(data, shape, datatype), None, LIMITS)
    return request.inputs["x"]


def repeated(lists: list[bytes], behind: bytes = b"1") -> bytes:
    """A body whose tensor has its data several times, of which the last counts."""
    data = b"".join(b'"data": [%b],' % one for one in lists)
    text = b'{"id": "%b", "inputs": [{"name": "x", "datatype": "FP32", "shape": [1], %b "data": [%b]}]}'
    return text % (b"i" * 100_000, data, behind)


def test_data_that_is_given_twice_has_to_be_json() -> None:
    model = Model("m", "1.0.0", "", "", {"x": TensorSpec("x", "FP32", ())}, {})
    request, _ = json_binary.decode(model, repeated([b"2", b'"a", [{}]'], b"3"), None, LIMITS)
    assert request.inputs["x"].tolist() == [3.0]
    for malformed in (b"2 3", b"2,", b'"a', b"[1"):
        with pytest.raises(RequestError, match="not valid JSON"):
            json_binary.decode(model, repeated([b"2", malformed]), None, LIMITS)
    for many in ([b"1," * 40_000 + b"1"], [b"1"] * 5000):
        with pytest.raises(RequestError, match="a name is given twice"):
            json_binary.decode(model, repeated(many), None, LIMITS)


def test_many_short_lists_take_no_longer_than_a_long_one(monkeypatch: pytest.MonkeyPatch) -> None:
    scanned = 0
    strings = portions._strings

    def counting(window: bytes, is_inside: bool) -> Any:
        nonlocal scanned
        scanned += len(window)
        return strings(window, is_inside)

    monkeypatch.setattr(portions, "_strings", counting)
    text = repeated([b"1"] * 4000)
    portions.loads(text, LIMITS)
    assert scanned < 20 * len(text)


COUNT = 200_000


@pytest.mark.parametrize("shape", [[COUNT], [COUNT, 1], [1, COUNT], [100, COUNT // 100], [10, 20, 1000]])
@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": ")])
def test_nested_lists(shape: list[int], separators: tuple[str, str]) -> None:
    values = np.arange(COUNT, dtype=np.float32).reshape(shape)
    data = json.dumps(values.tolist(), separators=separators)[1:-1].encode()
    assert np.array_equal(decode(data, shape), values)


def test_strings_with_brackets_and_escapes() -> None:
    strings = ['a]"[,', "\\", '\\"', "ü\n", ""] * 10_000
    data = json.dumps(strings)[1:-1].encode()
    assert decode(data, [len(strings)], "BYTES").tolist() == strings


@pytest.mark.parametrize(
    "data",
    [
        b"1,[" + b"1," * COUNT + b"1]",
        b"[1 [,] 2]," + b"[1,2]," * COUNT + b"[1,2]",
        b"1," * COUNT,
        b"1," * COUNT + b"x",
        b"[1],[" * COUNT,
        b"1 2," * COUNT + b"1",
    ],
)
def test_uneven_lists(data: bytes) -> None:
    for shape in ([COUNT + 1], [COUNT + 2], [COUNT + 2, 2], [COUNT + 1, 1]):
        with pytest.raises(RequestError):
            decode(data, shape)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b'{"inputs":[' + b"{}," * 100_000 + b"{}]}", "65 tensors, at most 64 are allowed"),
        (b'{"x":[' + b"{}," * 100_000 + b"{}]}", "the JSON around the values of tensors is larger than"),
        (b'{"id":"' + b"x" * 400_000 + b'"}', "the JSON around the values of tensors is larger than"),
        (body(b'"a",' * 300_000 + b'"a"', [300_001], "BYTES"), "at most 262144 are allowed"),
    ],
)
def test_what_is_refused_by_structure(text: bytes, message: str) -> None:
    """Before any object is made."""
    model = Model("m", "1.0.0", "", "", {"x": TensorSpec("x", "BYTES", ())}, {})
    with pytest.raises(RequestError, match=message) as raised:
        json_binary.decode(model, text, None, LIMITS)
    assert raised.value.failure is Failure.TOO_LARGE


@pytest.mark.parametrize("text", [b"[" * 400_000, b'{"inputs":' * 40_000, b'{"id":' + b"[" * 1024 + b"]" * 1024 + b"}"])
def test_what_is_nested_too_deep(text: bytes) -> None:
    model = Model("m", "1.0.0", "", "", {"x": TensorSpec("x", "BYTES", ())}, {})
    with pytest.raises(RequestError, match="nested deeper than 1024 levels") as raised:
        json_binary.decode(model, text + b" " * 400_000, None, LIMITS)
    assert raised.value.failure is Failure.INVALID


@pytest.mark.parametrize("field", [b"\x2a\x00", b"\x58\x00", b"\x3a\x00", b"\x32\x00", b"\x2a\x02\x2a\x00"], ids=str)
def test_messages_of_empty_fields(field: bytes) -> None:
    """Inputs, unknown fields, raw contents, outputs, inputs with contents."""
    with pytest.raises(RequestError) as raised:
        protobuf.parse_inference(b"\x0a\x01m" + field * 1_000_000, LIMITS)
    assert raised.value.failure is Failure.TOO_LARGE


@pytest.mark.parametrize("datatype", sorted(protobuf.CONTENTS))
def test_large_typed_contents(datatype: str) -> None:
    random = np.random.default_rng(3)
    dtype = DTYPES[datatype]
    values: list[Any]
    if dtype.kind == "O":
        values = [f"text {number}" for number in range(20_000)]
    elif dtype.kind == "f":
        values = random.standard_normal(40_000).astype(dtype).tolist()
    elif dtype.kind == "b":
        values = (random.integers(0, 2, 100_000) > 0).tolist()
    else:
        info = np.iinfo(dtype)
        values = random.integers(info.min, info.max, 80_000, dtype=dtype, endpoint=True).tolist()  # type: ignore[arg-type]
    message = messages.ModelInferRequest(model_name="m")
    tensor = message.inputs.add(name="x", datatype=datatype, shape=[len(values)])
    sent = [value.encode() for value in values] if dtype.kind == "O" else values
    getattr(tensor.contents, protobuf.CONTENTS[datatype]).extend(sent)
    model = Model("m", "1.0.0", "", "", {"x": TensorSpec("x", datatype, ())}, {})
    inference = protobuf.parse_inference(message.SerializeToString(), LIMITS)
    assert protobuf.takes_long(model, inference)
    request = protobuf.decode(model, inference, LIMITS)
    assert request.inputs["x"].tolist() == values


@pytest.mark.parametrize("depth", [0, 1, 2], ids=["message", "input", "contents"])
@pytest.mark.parametrize(
    "odd",
    [
        pytest.param(b"\x73\x74", id="group"),
        pytest.param(b"\x73" * 98 + b"\x74" * 98, id="groups in groups"),
        pytest.param(b"\x73" * 101 + b"\x74" * 101, id="groups too deep"),
        pytest.param(b"\x73\x08\x01\x12\x02ab\x1d1234\x21\x31\x32\x33\x34\x35\x36\x37\x38\x74", id="full group"),
        pytest.param(b"\x33\x34", id="group of a known number"),
        pytest.param(b"\x73\x6c", id="end of another group"),
        pytest.param(b"\x73", id="group without an end"),
        pytest.param(b"\x74", id="end without a group"),
        pytest.param(b"\x73\x0a\x05ab\x74", id="field beyond its group"),
        pytest.param(b"\x0e", id="wire type 6"),
        pytest.param(b"\x30\x01", id="contents of another wire type"),
        pytest.param(b"\x35\x00\x00\x80\x3f", id="contents that are not packed"),
        pytest.param(b"\xf8\xff\xff\xff\x0f\x01", id="largest number"),
        pytest.param(b"\xf8\xff\xff\xff\x1f\x01", id="number beyond 29 bits"),
        pytest.param(b"\xf0\x80\x80\x80\x80\x00\x01", id="number of six octets"),
        pytest.param(b"\x72\x80\x80\x80\x80\x80\x00", id="length of six octets"),
    ],
)
def test_odd_fields_mean_the_same_in_a_large_request(odd: bytes, depth: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As protobuf's own parser has it, which reads what is small."""
    contents = b"\x32\x04\x00\x00\x80\x3f" + (odd if depth == 2 else b"")
    header = b"\x0a\x01x\x12\x04FP32\x1a\x01" + bytes([1 + (b"\x35" in odd[:1] and depth == 2)])
    tensor = header + b"\x2a" + large_protobuf.varint(len(contents)) + contents + (odd if depth == 1 else b"")
    sent = b"\x0a\x01m\x2a" + large_protobuf.varint(len(tensor)) + tensor + (odd if depth == 0 else b"")
    model = Model("m", "1.0.0", "", "", {"x": TensorSpec("x", "FP32", ())}, {})

    def outcome() -> list[float] | Failure:
        try:
            return protobuf.decode(model, protobuf.parse_inference(sent, LIMITS), LIMITS).inputs["x"].tolist()
        except RequestError as error:
            return error.failure

    small = outcome()
    monkeypatch.setattr(protobuf, "LARGE", 0)
    assert outcome() == small


def test_values_of_a_large_answer() -> None:
    values = np.arange(100_000, dtype=np.float64) / 7
    values[5] = np.nan
    specs = {name: TensorSpec(name, "FP64", ()) for name in ("a", '"data":~', "b")}
    request = InferenceRequest('"data":~', {}, list(specs))
    model = Model("m", "1.0.0", "", "", {}, specs)
    text, raw = json_binary.encode_parts(model, request, [values.reshape(10, -1), values[:2], values], set())
    answer = json.loads(text)
    expected = [None if np.isnan(value) else value for value in values]
    assert [output["data"] for output in answer["outputs"]] == [expected, expected[:2], expected]
    assert (answer["id"], answer["outputs"][0]["shape"], raw) == ('"data":~', [10, 10_000], [])


def received(text: bytes) -> memoryview:
    """A body as a transport has received it."""
    memory = mmap(-1, len(text) + 16, MAP_PRIVATE | MAP_ANONYMOUS)
    memory[16:] = text
    return memoryview(memory)[16:]


@pytest.mark.parametrize("part", [b"1,", b"[1],", b"123456,", b"[[[1.5]]],"])
def test_memory_of_a_body_goes_as_it_is_read(part: bytes) -> None:
    count = 24 * MIB // len(part)
    shape = [count] + [1] * part.count(b"[")
    text = received(body(part * (count - 1) + part[:-1], shape))
    model = Model("m", "1.0.0", "", "", {"x": TensorSpec("x", "FP32", ())}, {})
    forget_peak(os.getpid())
    before = resident_bytes() - len(text)
    request, _ = json_binary.decode(model, text, None, LIMITS)
    taken = peak_bytes() - before
    assert taken < 3 * len(text), taken / len(text)
    assert np.count_nonzero(np.frombuffer(text, np.uint8)) < 2 * MIB  # the other pages are new ones
    assert float(part.strip(b"[],")) == request.inputs["x"].min() == request.inputs["x"].max()


def test_an_answer_is_written_once() -> None:
    values = np.zeros(8 * MIB, np.float32)
    model = Model("m", "1.0.0", "", "", {}, {"y": TensorSpec("y", "FP32", ())})
    # Of what this test allocates alone: servers of earlier tests may still be at work in this process.
    tracemalloc.start()
    try:
        text, _ = json_binary.encode_parts(model, InferenceRequest("", {}, ["y"]), [values], set())
        _current, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(text) <= peak < 1.3 * len(text)


def test_a_request_is_not_computed_by_a_model_of_other_tensors() -> None:
    before = Model("m", "1.0.0", "", "", {"x": TensorSpec("x", "FP32", (1,))}, {})
    check_same_tensors(before, before._replace(version="1.1.0"))
    with pytest.raises(RequestError, match="has got other tensors while the request was read; try again") as caught:
        check_same_tensors(before, before._replace(inputs={"x": TensorSpec("x", "FP32", (2,))}))
    assert caught.value.failure is Failure.UNAVAILABLE
