# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""gRPC's interoperability cases (its "Interoperability Test Case Descriptions") with its own client, on our service.

Each case has its name there. Left out: those of client or server streaming alone, which the service does not have,
those of the test service's wishes for compressed answers and echoed metadata, and those of Google's credentials.
"""

import threading
from collections.abc import Iterator
from typing import Any

import grpc  # type: ignore[import-untyped]
import numpy as np
import pytest
from edgeml_runtime.codecs import open_inference_grpc_pb2 as messages
from onnx_models import perceptron_scores
from serving import SERVICE, Server, features_message, steps_message

ROWS = [[1.0, 2.0, 3.0, 4.0]]
# For calls that must not end before they are cancelled.
FOR_EVER = 10_000_000


@pytest.fixture(scope="module")
def channel(server: Server) -> Iterator[grpc.Channel]:
    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}", options) as opened:
        yield opened


def unary(channel: grpc.Channel, path: str = SERVICE + "ModelInfer") -> Any:
    """A method with one request and one answer, its request in bytes."""
    return channel.unary_unary(path, bytes, messages.ModelInferResponse.FromString)


def stream(channel: grpc.Channel, requests: Any, timeout: float = 60) -> Any:
    """A ModelStreamInfer call."""
    method = channel.stream_stream(
        SERVICE + "ModelStreamInfer",
        messages.ModelInferRequest.SerializeToString,
        messages.ModelStreamInferResponse.FromString,
    )
    return method(requests, timeout=timeout)


def large(count: int = 17_000) -> bytes:
    """The cases want some 270,000 bytes."""
    message = messages.ModelInferRequest(model_name="perceptron")
    message.inputs.add(name="features", datatype="FP32", shape=[count, 4])
    message.raw_input_contents.append(np.arange(count * 4, dtype="<f4").tobytes())
    return message.SerializeToString()


def check_large(answer: messages.ModelInferResponse, count: int = 17_000) -> None:
    scores = np.frombuffer(answer.raw_output_contents[0], "<f4").reshape(count, 3)
    np.testing.assert_allclose(scores, perceptron_scores(np.arange(count * 4, dtype="<f4").reshape(-1, 4)), rtol=1e-4)


def failure(call: Any) -> tuple[str, str]:
    with pytest.raises(grpc.RpcError) as error:
        call()
    return error.value.code().name, error.value.details()


def test_empty_unary(channel: grpc.Channel) -> None:
    method = channel.unary_unary(SERVICE + "ServerLive", bytes, messages.ServerLiveResponse.FromString)
    assert method(b"", timeout=60).live


@pytest.mark.parametrize("coding", list(grpc.Compression), ids=str)
def test_large_unary_and_client_compressed_unary(channel: grpc.Channel, coding: grpc.Compression) -> None:
    answer, call = unary(channel).with_call(large(), timeout=60, compression=coding)
    check_large(answer)
    assert call.code() is grpc.StatusCode.OK
    # The same channel and method, not compressed.
    check_large(unary(channel)(large(), timeout=60, compression=grpc.Compression.NoCompression))


@pytest.mark.parametrize("coding", list(grpc.Compression), ids=str)
def test_server_compressed_unary(server: Server, coding: grpc.Compression) -> None:
    """A client that asks for any coding can read the answer."""
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}", compression=coding) as opened:
        check_large(unary(opened)(large(), timeout=60))


def test_ping_pong(channel: grpc.Channel) -> None:
    may_send = threading.Semaphore(0)

    def requests() -> Iterator[messages.ModelInferRequest]:
        for count in (1, 8, 653, 7_000):
            yield messages.ModelInferRequest.FromString(large(count))
            may_send.acquire(timeout=60)

    call = stream(channel, requests())
    for count in (1, 8, 653, 7_000):
        check_large(next(call).infer_response, count)
        may_send.release()
    assert next(call, None) is None
    assert call.code() is grpc.StatusCode.OK


def test_empty_stream(channel: grpc.Channel) -> None:
    call = stream(channel, iter(()))
    assert list(call) == []
    assert call.code() is grpc.StatusCode.OK


def test_custom_metadata(channel: grpc.Channel) -> None:
    """Whatever metadata a client sends, text, binary and much of it, the call is served, and gets none of it back."""
    metadata = (
        ("x-grpc-test-echo-initial", "test_initial_metadata_value"),
        ("x-grpc-test-echo-trailing-bin", b"\xab\xab\xab"),
        ("x-grpc-test-repeated", "one"),
        ("x-grpc-test-repeated", "two"),
        ("x-empty", ""),
        ("x-long", "a" * 5000),
    )
    for _ in range(2):
        answer, call = unary(channel).with_call(large(1), timeout=60, metadata=metadata)
        check_large(answer, 1)
        told = {name for name, _ in (*call.initial_metadata(), *call.trailing_metadata())}
        assert not told & {name for name, _ in metadata}


def test_status_code_and_message(channel: grpc.Channel) -> None:
    unknown = messages.ModelInferRequest(model_name="other")
    expected = ("NOT_FOUND", "model 'other' is not served here")
    assert failure(lambda: unary(channel)(unknown.SerializeToString(), timeout=60)) == expected
    answer = next(stream(channel, iter([unknown])))
    assert answer.error_message == expected[1]


def test_special_status_message(channel: grpc.Channel) -> None:
    text = "\t\ntest with whitespace\r\nand Unicode BMP \u263a and non-BMP \U0001f608\t\n"
    request = messages.ModelInferRequest(model_name=text).SerializeToString()
    assert failure(lambda: unary(channel)(request, timeout=60)) == ("NOT_FOUND", f"model '{text}' is not served here")


def test_unimplemented_method(channel: grpc.Channel) -> None:
    method = unary(channel, SERVICE + "UnimplementedCall")
    assert failure(lambda: method(b"", timeout=60))[0] == "UNIMPLEMENTED"


def test_unimplemented_service(channel: grpc.Channel) -> None:
    method = unary(channel, "/grpc.testing.UnimplementedService/UnimplementedCall")
    assert failure(lambda: method(b"", timeout=60))[0] == "UNIMPLEMENTED"


def test_cancel_after_begin(channel: grpc.Channel) -> None:
    never = threading.Event()

    def nothing() -> Iterator[messages.ModelInferRequest]:
        never.wait(60)
        yield from ()

    call = stream(channel, nothing())
    call.cancel()
    never.set()
    assert call.code() is grpc.StatusCode.CANCELLED
    # The same of a call that computes.
    future = unary(channel).future(steps_message(FOR_EVER).SerializeToString(), timeout=60)
    future.cancel()
    assert future.code() is grpc.StatusCode.CANCELLED
    check_large(unary(channel)(large(1), timeout=60), 1)


def test_cancel_after_first_response(channel: grpc.Channel) -> None:
    call = stream(channel, iter([features_message(ROWS), steps_message(FOR_EVER)]))
    assert next(call).error_message == ""
    call.cancel()
    assert call.code() is grpc.StatusCode.CANCELLED
    check_large(unary(channel)(large(1), timeout=60), 1)


def test_timeout_on_sleeping_server(channel: grpc.Channel) -> None:
    call = stream(channel, iter([steps_message(FOR_EVER)]), timeout=0.2)
    assert failure(lambda: next(call))[0] == "DEADLINE_EXCEEDED"
    slow = steps_message(FOR_EVER).SerializeToString()
    assert failure(lambda: unary(channel)(slow, timeout=0.2))[0] == "DEADLINE_EXCEEDED"


def test_concurrent_large_unary(channel: grpc.Channel) -> None:
    futures = [unary(channel).future(large(), timeout=240) for _ in range(16)]
    for future in futures:
        check_large(future.result())


def test_rpc_soak(channel: grpc.Channel) -> None:
    for _ in range(300):
        check_large(unary(channel)(large(1), timeout=60), 1)


def test_channel_soak(server: Server) -> None:
    options = [("grpc.use_local_subchannel_pool", 1)]
    for _ in range(20):
        with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}", options) as opened:
            check_large(unary(opened)(large(1), timeout=60), 1)
