# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""KServe's clients: ``python kserve_clients.py REST_HOST:PORT GRPC_HOST:PORT``."""

import asyncio
import importlib.util
import sys
import types
from typing import Any

import numpy as np

# The package's own beginning imports its server, which this environment lacks.
_spec = importlib.util.find_spec("kserve")
assert _spec is not None
_package = types.ModuleType("kserve")
_package.__path__ = list(_spec.submodule_search_locations or ())
sys.modules["kserve"] = _package

from kserve.inference_client import (  # type: ignore[import-not-found] # noqa: E402
    InferenceGRPCClient,
    InferenceRESTClient,
    RESTConfig,
)
from kserve.protocol.infer_type import InferInput, InferRequest  # type: ignore[import-not-found] # noqa: E402

ROWS = np.array([[1, 2, 3, 4], [0.5, -0.5, 0.25, -0.25]], dtype=np.float32)
BEST = [2, 0]


def request(model: str, binary: bool) -> Any:
    """ROWS as a request, in JSON and typed contents, or in binary and raw contents."""
    tensor = InferInput("features", list(ROWS.shape), "FP32")
    tensor.set_data_from_numpy(ROWS, binary_data=binary)
    return InferRequest(model, [tensor], request_id="7")


def check(response: Any) -> None:
    """The answer to ROWS."""
    assert (response.model_name, response.id) == ("perceptron", "7")
    outputs = {output.name: output.as_numpy() for output in response.outputs}
    assert outputs["scores"].shape == (2, 3)
    assert outputs["best"].tolist() == BEST


async def over_rest(url: str) -> None:
    """Health and inference by InferenceRESTClient."""
    async with InferenceRESTClient(RESTConfig(protocol="v2")) as client:
        assert await client.is_server_live(url)
        assert await client.is_server_ready(url)
        assert await client.is_model_ready(url, "perceptron")
        for binary in (False, True):
            check(await client.infer(url, request("perceptron", binary), model_name="perceptron"))
        try:
            await client.infer(url, request("other", binary=False), model_name="other")
        except Exception as error:
            assert "404" in str(error), error
        else:
            raise AssertionError("no error")


async def over_grpc(url: str) -> None:
    """Health and inference by InferenceGRPCClient."""
    async with InferenceGRPCClient(url) as client:
        assert await client.is_server_live()
        assert await client.is_server_ready()
        assert await client.is_model_ready("perceptron")
        for binary in (False, True):
            check(await client.infer(request("perceptron", binary)))
        try:
            await client.infer(request("other", binary=False))
        except Exception as error:
            assert "model 'other' is not served here" in str(error), error
        else:
            raise AssertionError("no error")


async def main(rest: str, grpc: str) -> None:
    """Both."""
    await over_rest(f"http://{rest}")
    await over_grpc(grpc)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
