# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""The engine in one process: where a request computes, and that its counts stay right."""

import asyncio
import gc
import threading
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgeml_runtime.engine import served_model
from edgeml_runtime.engine.engine import Engine
from edgeml_runtime.errors import Failure, StartError
from edgeml_runtime.inference import InferenceRequest
from edgeml_runtime.metrics import Metrics
from engines import configuration, failure_of, features, run, scaled, started
from onnx_models import repeated_product

ROWS = [[1.0, 2.0], [3.0, 4.0]]


def threads_of_runs(model: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The threads on which the model runs from now on."""
    seen: list[int] = []
    inner = model.model.run

    def run_and_tell(*arguments: Any) -> Any:
        seen.append(threading.get_ident())
        return inner(*arguments)

    monkeypatch.setattr(model.model, "run", run_and_tell)
    return seen


def test_a_quick_model_computes_on_the_event_loop_unless_the_request_is_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served_model, "INLINE_SECONDS", 0.05)  # whatever the neighbours on this machine do

    async def test() -> None:
        model = (await started(scaled(tmp_path, 2.0))).model("scaled", "")
        threads = threads_of_runs(model, monkeypatch)
        request = features(ROWS)
        assert (await model.infer(request))[0].tolist() == [[2.0, 4.0], [6.0, 8.0]]
        assert threads == [threading.get_ident()]
        assert request.queue_seconds == 0
        assert request.compute_seconds
        # As many times larger as the bound is longer than a run.
        many = int(2 * 0.05 / model.compute_seconds)
        assert len((await model.infer(features([[1.0, 2.0]] * many)))[0]) == many
        assert threads[1] != threading.get_ident()

    run(test)


def test_a_slow_model_computes_on_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        slow = repeated_product(tmp_path, warm_up_steps=200)
        model = (await started(slow.config)).model("repeated_product", "")
        threads = threads_of_runs(model, monkeypatch)
        request = InferenceRequest("", {"steps": np.array([1])}, ["corner"])
        await model.infer(request)
        assert threads[0] != threading.get_ident()
        assert request.queue_seconds
        assert request.compute_seconds

    run(test)


def test_a_model_that_holds_the_event_loop_runs_on_threads_from_then_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        # Quick at warm-up; the value of its input says how long it takes, not the size.
        model = (await started(repeated_product(tmp_path, warm_up_steps=1).config)).model("repeated_product", "")
        model._inline_elements = 1  # whatever the neighbours on this machine did at warm-up
        threads = threads_of_runs(model, monkeypatch)
        steps = 1000
        while "a run of repeated_product 1.0.0 takes" not in caplog.text:
            await model.infer(InferenceRequest("", {"steps": np.array([steps])}, ["corner"]))
            if model._inquiry is not None:
                await model._inquiry
            steps *= 2
        threads.clear()
        await model.infer(InferenceRequest("", {"steps": np.array([1])}, ["corner"]))
        assert threads != [threading.get_ident()]

    run(test)


def test_a_machine_that_holds_the_event_loop_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        model = (await started(scaled(tmp_path, 2.0))).model("scaled", "")
        model._inline_elements = 100
        threads = threads_of_runs(model, monkeypatch)
        model._observe_inline(features(ROWS), 10.0)
        while model._inquiry:
            await asyncio.sleep(0.001)
        threads.clear()
        await model.infer(features(ROWS))
        assert threads == [threading.get_ident()]

    run(test)


def test_a_run_ends_at_its_deadline(tmp_path: Path) -> None:
    async def test() -> None:
        model = (await started(repeated_product(tmp_path, warm_up_steps=200).config)).model("repeated_product", "")
        endless = InferenceRequest("", {"steps": np.array([2**40])}, ["corner"], timeout=0.1)
        assert (await failure_of(model.infer(endless))).failure is Failure.DEADLINE
        while model._scheduler.under_way:  # the engine itself stops: years of work are dropped
            await asyncio.sleep(0.01)

    run(test)


def test_metrics_follow_what_is_loaded_and_forget_what_is_not(tmp_path: Path) -> None:
    async def test() -> None:
        metrics = Metrics()
        engine = Engine(configuration(scaled(tmp_path, 2.0), scaled(tmp_path, 3.0, "2.0.0")), metrics)
        await engine.start()
        reference = weakref.ref(engine.model("scaled", "2.0.0"))
        assert 'edgeml_inference_under_way{model="scaled"} 0.0' in metrics.exposition().decode()
        await engine.model("scaled", "").infer(features(ROWS))
        for version in ("1.0.0", "2.0.0"):
            assert f'version="{version}"' in metrics.exposition().decode()
        await engine.unload("scaled")
        while reference():
            await asyncio.sleep(0.01)
            gc.collect()
        text = metrics.exposition().decode()
        assert "edgeml_model_info{" not in text
        assert "edgeml_inference_under_way{" not in text
        assert 'edgeml_inference_duration_seconds_count{model="scaled",stage="compute"} 1.0' in text

    run(test)


def test_a_model_that_cannot_be_served_as_told_is_refused_with_what_it_holds(tmp_path: Path) -> None:
    async def test() -> None:
        metrics = Metrics()
        model = scaled(tmp_path, 2.0, batching={"max_size": 8}, sequence={"states": [{"input": "x", "output": "y"}]})
        engine = Engine(configuration(model), metrics)
        with pytest.raises(StartError, match="one of the two"):
            await engine.start()
        assert [(line.state, "one of the two" in line.reason) for line in engine.index()] == [("UNAVAILABLE", True)]
        assert "edgeml_model_info{" not in metrics.exposition().decode()

    run(test)
