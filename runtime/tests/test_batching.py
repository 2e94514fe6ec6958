# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Micro-batching: the same answers as without it, in fewer runs; no request suffers from its neighbours."""

import asyncio
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgeml_runtime.engine.batching import Batcher
from edgeml_runtime.engine.engine import Engine
from edgeml_runtime.engine.model import Cancellation
from edgeml_runtime.engine.scheduler import Job, Scheduler
from edgeml_runtime.errors import Failure, RequestError, StartError, invalid
from edgeml_runtime.inference import InferenceRequest
from edgeml_runtime.serving import Batching, ServingOptions
from edgeml_runtime.tensors import Array, TensorSpec
from engines import described, failure_of, features, run, scaled, started
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx_models import every_type, perceptron, save

NAN = float("nan")


class Doubler:
    """Doubles ``x`` to ``y``; each run needs a permission of ``go``, or to be cancelled."""

    blocking = True
    inputs = {"x": TensorSpec("x", "FP32", (-1, -1))}
    outputs = {"y": TensorSpec("y", "FP32", (-1, -1))}

    def __init__(self, permissions: int = 0) -> None:
        self.batches: list[int] = []
        self.cancelled = 0
        self.go = threading.Semaphore(permissions)

    def run(
        self, inputs: Mapping[str, Array], outputs: Sequence[str], cancellation: Cancellation | None = None
    ) -> list[Array]:
        assert cancellation is not None
        self.batches.append(len(inputs["x"]))
        cancellation.bind(self.go.release)
        assert self.go.acquire(timeout=60)
        self.cancelled += cancellation.cancelled
        if np.isnan(inputs["x"]).any():
            raise invalid("a NaN")
        return [2 * inputs["x"]] * len(outputs)

    def close(self) -> None:
        pass


def batched(model: Doubler, max_size: int = 8, max_delay_ms: float = 0, **options: Any) -> Scheduler:
    batcher = Batcher(model, Batching(max_size, max_delay_ms))
    return Scheduler("model", ServingOptions(**options), 1, batcher.compute, batcher.take)


async def together(engine: Engine, requests: list[InferenceRequest]) -> list[Array]:
    """The answers to requests that come at the same time."""
    model = engine.model(next(iter(engine._configured)), "")
    return [answer[0] for answer in await asyncio.gather(*map(model.infer, requests))]


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.tuples(st.integers(0, 6), st.integers(1, 3)), min_size=1, max_size=20), seed=st.integers(0, 9)
)
def test_any_mix_of_rows_and_shapes_is_answered_as_without_batching(
    tmp_path_factory: pytest.TempPathFactory, counts: list[tuple[int, int]], seed: int
) -> None:
    async def test() -> None:
        root = tmp_path_factory.mktemp("models")
        plain = await started(scaled(root, 0.3, name="plain"))
        batching = await started(scaled(root, 0.3, name="batching", batching={"max_size": 8, "max_delay_ms": 1}))
        random = np.random.default_rng(seed)
        requests = [features(random.standard_normal(shape)) for shape in counts]
        expected = await together(plain, requests)
        for seen, wanted in zip(await together(batching, requests), expected, strict=True):
            np.testing.assert_array_equal(seen, wanted, strict=True)

    run(test)


def test_several_outputs_of_a_matrix_product(tmp_path: Path) -> None:
    async def test() -> None:
        entry = perceptron(tmp_path).config | {"options": {"batching": {"max_size": 64}}}
        engine = await started(entry)
        random = np.random.default_rng(1)
        requests = [
            InferenceRequest("", {"features": random.standard_normal((rows, 4)).astype(np.float32)}, outputs)
            for rows in (1, 2, 5)
            for outputs in (["scores", "best"], ["best", "scores"], ["best"])
        ]
        model = engine.model("perceptron", "")
        answers = await asyncio.gather(*map(model.infer, requests))
        for request, answer in zip(requests, answers, strict=True):
            expected = model.model.run(request.inputs, request.outputs)
            assert len(answer) == len(expected)
            for seen, wanted in zip(answer, expected, strict=True):
                assert seen.dtype == wanted.dtype
                np.testing.assert_allclose(seen, wanted, rtol=1e-6)

    run(test)


def test_all_datatypes(tmp_path: Path) -> None:
    async def test() -> None:
        entry = every_type(tmp_path).config | {"options": {"batching": {"max_size": 64}}}
        model = (await started(entry)).model("every_type", "")
        requests = []
        for number in range(6):
            inputs = {name: spec.zeros((number, 2)) for name, spec in model.inputs.items()}
            for array in inputs.values():
                array[:] = f"text {number}" if array.dtype.kind == "O" else number
            requests.append(InferenceRequest("", inputs, list(model.outputs)))
        for request, answer in zip(requests, await asyncio.gather(*map(model.infer, requests)), strict=True):
            for name, array in zip(request.outputs, answer, strict=True):
                wanted = request.inputs[name.replace("out_", "in_")]
                assert array.dtype == wanted.dtype
                np.testing.assert_array_equal(array, wanted)

    run(test)


def test_what_waits_together_is_computed_together_up_to_the_greatest_size() -> None:
    async def test() -> None:
        model = Doubler()
        scheduler = batched(model, max_size=8)
        rows = [1, 3, 3, 2, 9, 1, 1, 0, 0]
        answers = [asyncio.create_task(scheduler.infer(features(np.ones((count, 2))))) for count in rows]
        while not model.batches:
            await asyncio.sleep(0.001)
        model.go.release(100)
        for count, answer in zip(rows, await asyncio.gather(*answers), strict=True):
            assert answer[0].tolist() == [[2.0, 2.0]] * count
        # The first came alone; 3 + 3 + 2 fill a batch; 9 rows are more than one and go alone.
        assert model.batches == [1, 8, 9, 2]

    run(test)


def test_different_shapes_and_outputs_are_not_mixed() -> None:
    async def test() -> None:
        model = Doubler()
        scheduler = batched(model)
        requests = [features(np.ones((1, columns))) for columns in (2, 2, 3, 2, 3)]
        requests[3].outputs = ["y", "y"]
        answers = [asyncio.create_task(scheduler.infer(request)) for request in (features([[1, 1]]), *requests)]
        while not model.batches:
            await asyncio.sleep(0.001)
        model.go.release(100)
        shapes = [[array.shape for array in answer] for answer in await asyncio.gather(*answers)]
        assert shapes == [[(1, 2)], [(1, 2)], [(1, 2)], [(1, 3)], [(1, 2), (1, 2)], [(1, 3)]]
        assert model.batches == [1, 2, 2, 1]

    run(test)


def test_a_bad_request_fails_alone(tmp_path: Path) -> None:
    async def test() -> None:
        model = Doubler()
        scheduler = batched(model)
        rows = [1.0, 2.0, NAN, 4.0, 5.0]
        answers = [asyncio.create_task(scheduler.infer(features([[row]]))) for row in rows]
        while not model.batches:
            await asyncio.sleep(0.001)
        model.go.release(100)
        results = await asyncio.gather(*answers, return_exceptions=True)
        assert isinstance(results[2], RequestError)
        assert [result[0].item() for result in results if not isinstance(result, BaseException)] == [2, 4, 8, 10]
        assert model.batches == [1, 4, 1, 1, 1, 1]
        assert scheduler.under_way == 0
        # The same with the engine itself.
        engine = await started(scaled(tmp_path, 2.0, batching={"max_size": 8}))
        seen = await asyncio.gather(
            *(engine.model("scaled", "").infer(features([[row]])) for row in rows), return_exceptions=True
        )
        assert [isinstance(result, RequestError) for result in seen] == [False, False, True, False, False]

    run(test)


def test_a_deadline_and_a_client_that_leaves_concern_one_request_of_a_batch() -> None:
    async def test() -> None:
        model = Doubler()
        scheduler = batched(model)
        first = asyncio.create_task(scheduler.infer(features([[1.0]])))
        while not model.batches:
            await asyncio.sleep(0.001)
        late, leaving, patient = (asyncio.create_task(scheduler.infer(features([[2.0]]))) for _ in range(3))
        await asyncio.sleep(0)
        model.go.release()
        await first
        while len(model.batches) < 2:
            await asyncio.sleep(0.001)
        leaving.cancel()
        late.cancel()
        await asyncio.gather(leaving, late, return_exceptions=True)
        assert (model.batches, model.cancelled, scheduler.under_way) == ([1, 3], 0, 3)
        model.go.release()
        assert (await patient)[0].item() == 4.0
        assert scheduler.under_way == 0

    run(test)


def test_a_batch_that_nobody_waits_for_is_ended() -> None:
    async def test() -> None:
        model = Doubler()
        scheduler = batched(model, deadline_seconds=0.05)
        answers = [asyncio.create_task(scheduler.infer(features([[1.0]]))) for _ in range(4)]
        for answer in answers:
            assert (await failure_of(answer)).failure is Failure.DEADLINE
        while scheduler.under_way:
            await asyncio.sleep(0.001)
        assert model.cancelled == len(model.batches) >= 1

    run(test)


def waiting(*rows: int) -> deque[Job]:
    loop = asyncio.get_running_loop()
    return deque(Job(features(np.ones((count, 1))), loop.create_future()) for count in rows)


def test_a_batch_is_waited_for_only_when_the_one_before_makes_it_likely(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        now = 100.0
        monkeypatch.setattr("edgeml_runtime.engine.batching.perf_counter", lambda: now)
        monkeypatch.setattr("edgeml_runtime.engine.scheduler.perf_counter", lambda: now)
        batcher = Batcher(Doubler(), Batching(8, max_delay_ms=10))

        def take(jobs: deque[Job]) -> tuple[int, float]:
            batch, seconds = batcher.take(jobs)
            return len(batch), round(seconds, 6)

        assert take(waiting(1)) == (1, 0.0)  # the first ever
        three = waiting(1, 1, 1)
        batcher._expected = (3, now + 0.010)  # a batch of three ended now
        assert take(waiting(1, 1)) == (0, 0.010)
        assert take(three) == (3, 0.0)  # as many as before
        assert take(waiting(4, 4)) == (2, 0.0)  # full
        two = waiting(1, 1)
        now += 0.004
        assert take(two) == (0, 0.006)
        now += 0.007
        assert take(two) == (2, 0.0)
        assert take(waiting(1)) == (1, 0.0)  # long after it

    run(test)


def test_a_lone_client_never_waits() -> None:
    async def test() -> None:
        model = Doubler(permissions=20)
        scheduler = batched(model, max_delay_ms=10_000)
        for _ in range(20):  # with any waiting this would take minutes
            await scheduler.infer(features([[1.0]]))
        assert model.batches == [1] * 20

    run(test)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 2), r"input 'x' has shape \[1, 2\]; the first dimension of all inputs and outputs must be of any size"),
        ((), "input 'x' has shape"),
    ],
)
def test_a_fixed_first_dimension_is_refused(tmp_path: Path, shape: tuple[int, ...], message: str) -> None:
    async def test() -> None:
        entry = scaled(tmp_path, 2.0, shape=shape, batching={"max_size": 8})
        if not shape:
            (Path(entry["path"]) / "golden" / "first.json").unlink()
        with pytest.raises(StartError, match=message):
            await started(entry)

    run(test)


@pytest.mark.parametrize(
    ("operator", "shape", "message"),
    [
        ("ReduceSum", [], r"output 'y' has shape \[\]; the first dimension"),
        # Declared as a row each, and only a run shows that it is not.
        ("Concat", ["rows", 1], r"output 'y' has shape \[2, 1\] for 1 rows and \[4, 1\] for 2"),
        ("Mean", ["rows", 1], "other rows in the batch change a result: output 'y' is 1.0"),
    ],
)
def test_outputs_that_are_no_rows_are_refused(tmp_path: Path, operator: str, shape: list[Any], message: str) -> None:
    async def test() -> None:
        nodes = {
            "ReduceSum": [helper.make_node("ReduceSum", ["x"], ["y"], keepdims=0)],
            "Concat": [helper.make_node("Concat", ["x", "x"], ["y"], axis=0)],
            "Mean": [
                helper.make_node("ReduceMean", ["x"], ["mean"], axes=[0]),
                helper.make_node("Mul", ["x", "zero"], ["zeros"]),
                helper.make_node("Add", ["mean", "zeros"], ["y"]),
            ],
        }[operator]
        graph = helper.make_graph(
            nodes,
            "model",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 1])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
            [numpy_helper.from_array(np.zeros(1, np.float32), "zero")],
        )
        golden = {
            "inputs": [{"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [2.0]}],
            "outputs": [{"name": "y", "shape": [1, 1], "datatype": "FP32", "data": [2.0]}],
        }
        path = save(tmp_path, "model", graph, golden if operator == "Mean" else None).path
        entry = described(path, "model", "1.0.0", {"batching": {"max_size": 8}})
        with pytest.raises(StartError, match=message):
            await started(entry)

    run(test)
