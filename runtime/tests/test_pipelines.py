# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Pipelines: several steps served as one model."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgeml_runtime.config import ModelConfig
from edgeml_runtime.engine.loading import load_model
from edgeml_runtime.engine.model import Cancellation, Model
from edgeml_runtime.errors import Failure, RequestError, StartError
from edgeml_runtime.serving import EngineOptions
from onnx_models import ModelDirectory, perceptron_scores, repeated_product
from python_models import LABELS, PICTURES, SCORES, classifier, classifier_steps

PIXELS = np.array([[0, 51, 102, 255], [255, 0, 0, 51]], np.uint8)


def load(directory: Path, options: dict[str, Any] | None = None) -> Model:
    config = ModelConfig(directory.name, "1.0.0", "", directory, options or {}, "test")
    return load_model(config, EngineOptions(), None)[2]


@pytest.mark.parametrize("isolated", [False, True], ids=["in_process", "isolated"])
def test_served_as_one_model(start_server: Any, tmp_path: Path, isolated: bool) -> None:
    server = start_server([classifier(tmp_path, isolated=isolated)])
    server.wait_ready()
    metadata = server.rest("GET", "/v2/models/classifier").json
    assert (metadata["platform"], metadata["inputs"], metadata["outputs"]) == ("pipeline", [PICTURES], [SCORES, LABELS])
    request = {"inputs": [{**PICTURES, "shape": [2, 4], "data": PIXELS.reshape(-1).tolist()}]}
    answer = server.infer("classifier", request).json
    scores = perceptron_scores(PIXELS.astype(np.float32) / 255)
    np.testing.assert_allclose(np.reshape(answer["outputs"][0]["data"], (2, 3)), scores, rtol=1e-5, atol=1e-6)
    names = np.array(["one", "two", "three"])[scores.argmax(axis=1)].tolist()
    assert answer["outputs"][1] == {"name": "labels", "datatype": "BYTES", "shape": [2], "data": names}
    answer = server.infer("classifier", {**request, "outputs": [{"name": "labels"}]}).json
    assert [output["name"] for output in answer["outputs"]] == ["labels"]
    assert server.infer("classifier", {"inputs": [{**PICTURES, "shape": [1, 3], "data": [1, 2, 3]}]}).status == 400


def test_parameters_come_from_the_configuration(tmp_path: Path) -> None:
    model = load(classifier(tmp_path).path, {"parameters": {"labels": ["eins", "zwei", "drei"]}})
    assert set(model.run({"pictures": PIXELS}, ["labels"])[0]) <= {"eins", "zwei", "drei"}


def changed(number: int, **keys: object) -> list[dict[str, Any]]:
    """The steps of the classifier, with one of them changed."""
    steps = classifier_steps()
    steps[number] = {**steps[number], **keys}
    return steps


@pytest.mark.parametrize(
    ("serving", "message"),
    [
        (
            {"steps": changed(1, inputs={"features": "featurs"})},
            "steps[1] (model.onnx): input 'features' takes 'featurs', which nothing gives; there are pictures, "
            "features",
        ),
        (
            {"steps": classifier_steps()[::-1]},
            "steps[0] (label.py): input 'best' takes 'classes', which a later step gives",
        ),
        ({"steps": changed(1, inputs={})}, "steps[1] (model.onnx): input 'features' of the model gets no tensor"),
        (
            {"steps": changed(1, inputs={"features": "features", "x": "pictures"})},
            "steps[1] (model.onnx): the model has no input 'x', but features",
        ),
        (
            {"steps": changed(1, outputs={"score": "scores"})},
            "steps[1] (model.onnx): the model has no output 'score', but scores, best",
        ),
        (
            {"steps": changed(0, outputs={"scaled": "pictures"})},
            "steps[0] (prepare.py): 'pictures' is given a second time, first by input 'pictures'",
        ),
        (
            {"steps": changed(0, output_specs=[{"name": "scaled", "datatype": "FP64", "shape": [-1, 4]}])},
            "steps[1] (model.onnx): input 'features' is FP32 of shape [-1, 4], "
            "but 'features' of steps[0] (prepare.py) is FP64 of shape [-1, 4]",
        ),
        (
            {"steps": changed(0, output_specs=[{"name": "scaled", "datatype": "FP32", "shape": [-1, 5]}])},
            "steps[1] (model.onnx): input 'features' is FP32 of shape [-1, 4], "
            "but 'features' of steps[0] (prepare.py) is FP32 of shape [-1, 5]",
        ),
        (
            {"steps": changed(0, output_specs=[{"name": "scaled", "datatype": "FP32", "shape": [4]}])},
            "but 'features' of steps[0] (prepare.py) is FP32 of shape [4]",
        ),
        ({"outputs": [SCORES]}, "'labels' of steps[2] (label.py) is used by no step and is no output"),
        (
            {"inputs": [PICTURES, {**PICTURES, "name": "more"}]},
            "input 'more' is used by no step and is no output",
        ),
        ({"outputs": [SCORES, LABELS, {**LABELS, "name": "x"}]}, "outputs: 'x' takes 'x', which nothing gives"),
        (
            {"outputs": [{**SCORES, "datatype": "FP64"}, LABELS]},
            "outputs: 'scores' is FP64 of shape [-1, 3], "
            "but 'scores' of steps[1] (model.onnx) is FP32 of shape [-1, 3]",
        ),
        ({"steps": changed(2, file="missing.py")}, "missing.py: FileNotFoundError"),
        ({"steps": changed(1, file="missing.onnx")}, "missing.onnx: ONNX Runtime cannot load it"),
        ({"steps": changed(1, file="../model.onnx")}, "steps[1].file"),
        ({"steps": changed(1, platform="pipeline")}, "steps[1].platform"),
        ({"steps": []}, "steps: seen no step"),
    ],
)
def test_steps_that_do_not_fit(tmp_path: Path, serving: dict[str, Any], message: str) -> None:
    with pytest.raises(StartError) as caught:
        load(classifier(tmp_path, **serving).path)
    assert message in str(caught.value)
    assert "serving.json" in str(caught.value) or "missing" in str(caught.value)


def test_file_of_a_pipeline(tmp_path: Path) -> None:
    directory = classifier(tmp_path).path
    description = directory / "model.json"
    description.write_text(description.read_text().replace("serving.json", "model.onnx"))
    with pytest.raises(StartError, match=r"model.json: 'file' of a pipeline is serving.json, not 'model.onnx'"):
        load(directory)


def test_shapes_are_narrowed_to_what_all_steps_take(tmp_path: Path) -> None:
    model = load(classifier(tmp_path, outputs=[{**SCORES, "shape": [-1, -1]}, LABELS]).path)
    assert model.outputs["scores"].shape == (-1, 3)


def test_shape_between_steps_is_checked(tmp_path: Path) -> None:
    directory = classifier(tmp_path).path
    (directory / "prepare.py").write_text(
        "import numpy\n"
        "def infer(inputs):\n"
        "    return {'scaled': numpy.zeros((1, 4 if len(inputs['raw']) == 1 else 5), numpy.float32)}\n"
    )
    model = load(directory)
    with pytest.raises(RequestError) as caught:
        model.run({"pictures": PIXELS}, ["labels"])
    assert caught.value.failure is Failure.INTERNAL
    assert str(caught.value) == (
        "step 0 (prepare.py) gave 'features' of shape [1, 5], the next one takes [-1, 4] (-1: any size)"
    )


def slow_pipeline(root: Path) -> ModelDirectory:
    """As slow as its input says, then a Python step that leaves a trace."""
    directory = repeated_product(root, 1).path
    (directory / "after.py").write_text(
        "from pathlib import Path\ndef infer(inputs):\n    Path(f'{__file__}.ran').touch()\n    return inputs\n"
    )
    corner = {"name": "corner", "datatype": "FP32", "shape": [1, 1]}
    steps = [
        {
            "platform": "onnxruntime_onnx",
            "file": "model.onnx",
            "inputs": {"steps": "steps"},
            "outputs": {"corner": "first"},
        },
        {
            "platform": "python",
            "file": "after.py",
            "inputs": {"corner": "first"},
            "outputs": {"corner": "corner"},
            "input_specs": [corner],
            "output_specs": [corner],
        },
    ]
    (directory / "serving.json").write_text(
        json.dumps(
            {"inputs": [{"name": "steps", "datatype": "INT64", "shape": [1]}], "outputs": [corner], "steps": steps}
        )
    )
    description = directory / "model.json"
    description.write_text(
        description.read_text().replace("onnxruntime_onnx", "pipeline").replace("model.onnx", "serving.json")
    )
    return ModelDirectory(directory.name, directory)


def test_cancellation_reaches_the_step_under_way(tmp_path: Path) -> None:
    directory = slow_pipeline(tmp_path).path
    model = load(directory)
    cancellation = Cancellation()
    timer = threading.Timer(0.3, cancellation.cancel)
    with ThreadPoolExecutor(1) as threads:
        # Would take years.
        endless = threads.submit(model.run, {"steps": np.array([10**12])}, ["corner"], cancellation)
        timer.start()
        with pytest.raises(RequestError):
            endless.result(60)
    assert not (directory / "after.py.ran").exists()
    with pytest.raises(RequestError, match="ended before step 0"):
        model.run({"steps": np.array([1])}, ["corner"], cancellation)
    assert model.run({"steps": np.array([1])}, ["corner"], Cancellation())[0].tolist() == [[1.0]]
    assert (directory / "after.py.ran").exists()
