# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""tritonclient over HTTP: ``python triton_http.py HOST:PORT``."""

import asyncio
import sys
from functools import partial
from typing import Any

import numpy as np
import tritonclient.http as triton  # type: ignore[import-not-found]
import tritonclient.http.aio as triton_aio  # type: ignore[import-not-found]
from triton import BEST, ROWS, TENSORS, check_every_type, check_perceptron, error_of, inputs

STEP = np.array([[1, 2]], dtype=np.float32)
#: FP16 has no form in JSON that this client knows.
IN_JSON = [name for name in TENSORS if name != "FP16"]


def main(url: str) -> None:
    """Everything that the client can ask."""
    with triton.InferenceServerClient(url, concurrency=4) as client:
        health_and_metadata(client)
        inference(client)
        compression(client)
        errors(client)
        sequence(client)
        repository(client)
    asyncio.run(asynchronous(url))


def health_and_metadata(client: Any) -> None:
    """Live, ready, metadata."""
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("perceptron")
    assert client.is_model_ready("perceptron", "1.0.0")
    assert client.get_server_metadata()["name"] == "edgeml-runtime"
    metadata = client.get_model_metadata("perceptron")
    assert (metadata["name"], metadata["versions"]) == ("perceptron", ["1.0.0"])
    assert metadata["inputs"] == [{"name": "features", "datatype": "FP32", "shape": [-1, 4]}]


def inference(client: Any) -> None:
    """JSON and binary in any mixture, all datatypes, ids, and calls in the background."""
    for binary_in in (False, True):
        features = inputs(triton, {"features": ROWS}, binary_data=binary_in)
        result = client.infer("perceptron", features, model_version="1.0.0", request_id="7")
        check_perceptron(result)
        assert result.get_response()["id"] == "7"
        for binary_out in (False, True):
            outputs = [triton.InferRequestedOutput("best", binary_data=binary_out)]
            result = client.infer("perceptron", features, outputs=outputs)
            assert result.as_numpy("best").tolist() == BEST
    tensors = {f"in_{name}": array for name, array in TENSORS.items()}
    check_every_type(client.infer("every_type", inputs(triton, tensors, binary_data=True)), list(TENSORS))
    mixed = inputs(triton, {f"in_{name}": TENSORS[name] for name in IN_JSON}, binary_data=False)
    mixed += inputs(triton, {"in_FP16": TENSORS["FP16"]}, binary_data=True)
    outputs = [triton.InferRequestedOutput(f"out_{name}", binary_data=False) for name in IN_JSON]
    check_every_type(client.infer("every_type", mixed, outputs=outputs), IN_JSON)
    features = inputs(triton, {"features": ROWS})
    for request in [client.async_infer("perceptron", features) for _ in range(20)]:
        check_perceptron(request.get_result())


def compression(client: Any) -> None:
    """Compressed requests and answers."""
    features = inputs(triton, {"features": ROWS})
    for algorithm in ("gzip", "deflate"):
        check_perceptron(client.infer("perceptron", features, request_compression_algorithm=algorithm))
        check_perceptron(client.infer("perceptron", features, response_compression_algorithm=algorithm))


def errors(client: Any) -> None:
    """Errors arrive as the client's exception, with code and message; a timeout ends a request."""
    error = error_of(lambda: client.infer("other", inputs(triton, {"features": ROWS})))
    assert (error.status(), error.message()) == ("404", "model 'other' is not served here")
    error = error_of(lambda: client.infer("perceptron", inputs(triton, {"features": ROWS.astype(np.float64)})))
    assert error.status() == "400"
    assert "datatype 'FP64', the model takes FP32" in error.message()
    long = inputs(triton, {"steps": np.array([10_000_000])})
    error = error_of(lambda: client.infer("repeated_product", long, timeout=200_000))
    assert (error.status(), error.message()) == ("504", "model 'repeated_product' gave no answer within 0.2 s")


def sequence(client: Any) -> None:
    """The state follows the sequence, whose id is a number or text."""
    step = inputs(triton, {"x": STEP})
    for sequence_id in (42, "a name"):
        for number in range(1, 4):
            result = client.infer(
                "running_sum", step, sequence_id=sequence_id, sequence_start=number == 1, sequence_end=number == 3
            )
            assert result.as_numpy("y").tolist() == (STEP * number).tolist()


def repository(client: Any) -> None:
    """Index, unload, load."""

    def states() -> dict[str, str]:
        return {model["name"]: model["state"] for model in client.get_model_repository_index()}

    assert states()["second"] == "READY"
    client.unload_model("second")
    assert states()["second"] == "UNAVAILABLE"
    assert not client.is_model_ready("second")
    client.load_model("second")
    assert states()["second"] == "READY"
    assert error_of(partial(client.load_model, "other")).status() == "404"


async def asynchronous(url: str) -> None:
    """The asyncio client: many requests at once."""
    async with triton_aio.InferenceServerClient(url) as client:
        assert await client.is_server_ready()
        features = inputs(triton_aio, {"features": ROWS})
        for result in await asyncio.gather(*(client.infer("perceptron", features) for _ in range(50))):
            check_perceptron(result)


if __name__ == "__main__":
    main(sys.argv[1])
