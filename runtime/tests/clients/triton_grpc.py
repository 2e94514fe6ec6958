# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""tritonclient over gRPC: ``python triton_grpc.py HOST:PORT``."""

import asyncio
import queue
import sys
from functools import partial
from typing import Any

import numpy as np
import tritonclient.grpc as triton  # type: ignore[import-not-found]
import tritonclient.grpc.aio as triton_aio  # type: ignore[import-not-found]
from triton import BEST, ROWS, TENSORS, check_every_type, check_perceptron, error_of, inputs

STEP = np.array([[1, 2]], dtype=np.float32)
LONG = np.array([10_000_000])


def main(url: str) -> None:
    """Everything that the client can ask."""
    with triton.InferenceServerClient(url) as client:
        health_and_metadata(client)
        inference(client)
        errors(client)
        sequence(client)
        stream(client)
        repository(client)
    asyncio.run(asynchronous(url))


def health_and_metadata(client: Any) -> None:
    """Live, ready, metadata."""
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("perceptron")
    assert client.is_model_ready("perceptron", "1.0.0")
    assert client.get_server_metadata().name == "edgeml-runtime"
    metadata = client.get_model_metadata("perceptron", as_json=True)
    assert (metadata["name"], metadata["versions"]) == ("perceptron", ["1.0.0"])
    assert metadata["inputs"] == [{"name": "features", "datatype": "FP32", "shape": ["-1", "4"]}]


def inference(client: Any) -> None:
    """All datatypes, requested outputs, ids, compression, and calls in the background."""
    features = inputs(triton, {"features": ROWS})
    result = client.infer("perceptron", features, model_version="1.0.0", request_id="7", parameters={"any": "thing"})
    check_perceptron(result)
    assert result.get_response().id == "7"
    result = client.infer("perceptron", features, outputs=[triton.InferRequestedOutput("best")])
    assert result.as_numpy("best").tolist() == BEST
    assert result.as_numpy("scores") is None
    tensors = {f"in_{name}": array for name, array in TENSORS.items()}
    check_every_type(client.infer("every_type", inputs(triton, tensors)), list(TENSORS))
    for algorithm in ("gzip", "deflate"):
        check_perceptron(client.infer("perceptron", features, compression_algorithm=algorithm))
    answers: queue.Queue[Any] = queue.Queue()
    for _ in range(20):
        client.async_infer("perceptron", features, lambda result, error: answers.put((result, error)))
    for _ in range(20):
        result, error = answers.get(timeout=60)
        assert error is None
        check_perceptron(result)


def errors(client: Any) -> None:
    """Errors arrive as the client's exception, with code and message; timeouts of both kinds end a request."""
    features = inputs(triton, {"features": ROWS})
    error = error_of(lambda: client.infer("other", features))
    assert (error.status(), error.message()) == ("StatusCode.NOT_FOUND", "model 'other' is not served here")
    error = error_of(lambda: client.infer("perceptron", inputs(triton, {"features": ROWS.astype(np.float64)})))
    assert error.status() == "StatusCode.INVALID_ARGUMENT"
    assert "datatype 'FP64', the model takes FP32" in error.message()
    long = inputs(triton, {"steps": LONG})
    for timeout in ({"client_timeout": 0.2}, {"timeout": 200_000}):
        error = error_of(lambda timeout=timeout: client.infer("repeated_product", long, **timeout))  # type: ignore[misc]
        assert error.status() == "StatusCode.DEADLINE_EXCEEDED"
    assert error.message() == "model 'repeated_product' gave no answer within 0.2 s"
    # What only other servers have.
    assert error_of(lambda: client.get_inference_statistics("perceptron")).status() == "StatusCode.UNIMPLEMENTED"


def sequence(client: Any) -> None:
    """The state follows the sequence, whose id is a number or text."""
    step = inputs(triton, {"x": STEP})
    for sequence_id in (42, 2**63 - 1, "a name"):
        for number in range(1, 4):
            result = client.infer(
                "running_sum", step, sequence_id=sequence_id, sequence_start=number == 1, sequence_end=number == 3
            )
            assert result.as_numpy("y").tolist() == (STEP * number).tolist()


def stream(client: Any) -> None:
    """Many requests on one stream, answers in order, an error among them, a sequence."""
    answers: queue.Queue[Any] = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    for number in range(100):
        rows = np.full((1, 4), number, dtype=np.float32)
        client.async_stream_infer("perceptron", inputs(triton, {"features": rows}), request_id=str(number))
    for number in range(100):
        result, error = answers.get(timeout=60)
        assert (error, result.get_response().id) == (None, str(number))
    client.async_stream_infer("other", inputs(triton, {"features": ROWS}))
    client.async_stream_infer("perceptron", inputs(triton, {"features": ROWS}))
    assert answers.get(timeout=60)[1].message() == "model 'other' is not served here"
    check_perceptron(answers.get(timeout=60)[0])
    for number in range(1, 21):
        start, end = number == 1, number == 20
        step = inputs(triton, {"x": STEP})
        client.async_stream_infer("running_sum", step, sequence_id=9, sequence_start=start, sequence_end=end)
    for number in range(1, 21):
        assert answers.get(timeout=60)[0].as_numpy("y").tolist() == (STEP * number).tolist()
    client.stop_stream()


def repository(client: Any) -> None:
    """Index, unload, load."""

    def states() -> dict[str, str]:
        return {model.name: model.state for model in client.get_model_repository_index().models}

    assert states()["second"] == "READY"
    client.unload_model("second")
    assert states()["second"] == "UNAVAILABLE"
    assert not client.is_model_ready("second")
    client.load_model("second")
    assert states()["second"] == "READY"
    assert error_of(partial(client.load_model, "other")).status() == "StatusCode.NOT_FOUND"


async def asynchronous(url: str) -> None:
    """The asyncio client: many requests at once, and a stream."""
    async with triton_aio.InferenceServerClient(url) as client:
        assert await client.is_server_ready()
        features = inputs(triton_aio, {"features": ROWS})
        for result in await asyncio.gather(*(client.infer("perceptron", features) for _ in range(50))):
            check_perceptron(result)

        async def requests() -> Any:
            for number in range(20):
                yield {"model_name": "perceptron", "inputs": features, "request_id": str(number)}

        number = 0
        async for result, error in client.stream_infer(requests()):
            assert (error, result.get_response().id) == (None, str(number))
            check_perceptron(result)
            number += 1
        assert number == 20


if __name__ == "__main__":
    main(sys.argv[1])
