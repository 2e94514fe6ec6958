# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""From a model directory to a loaded model: ``model.json`` says what it is, ``serving.json`` how it is served."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from edgeml_runtime.config import ModelConfig
from edgeml_runtime.engine.isolated_model import IsolatedModel
from edgeml_runtime.engine.model import Model
from edgeml_runtime.engine.pipeline import LoadedStep, Pipeline
from edgeml_runtime.engine.python_code import Context
from edgeml_runtime.engine.python_model import PythonModel
from edgeml_runtime.errors import ConfigurationError, StartError
from edgeml_runtime.serving import (
    ONNX,
    PLATFORMS,
    PYTHON,
    SERVING_FILE,
    EngineOptions,
    ServingOptions,
    read_serving_file,
)
from edgeml_runtime.tensors import TensorSpec

DESCRIPTION_FILE = "model.json"


@dataclass(frozen=True, slots=True)
class Description:
    """The content of ``model.json``: name, version, platform, and the file that the platform loads."""

    name: str
    version: str
    platform: str
    file: Path


def load_model(
    config: ModelConfig, engine: EngineOptions, cache_directory: Path | None
) -> tuple[Description, ServingOptions, Model]:
    """Read the directory and load the model; slow, for a thread of its own. Raises StartError.

    A bare ``.onnx`` file is a model as well, with the name and the version of the configuration.
    """
    description, options = describe(config, engine)
    return description, options, _load(description, options, cache_directory)


def describe(config: ModelConfig, engine: EngineOptions) -> tuple[Description, ServingOptions]:
    """What the model is and how it is to be served. Raises StartError."""
    if config.path.suffix == ".onnx" and config.path.is_file():
        description = Description(config.name, config.version, ONNX, config.path)
    else:
        description = read_description(config.path)
    for key, wanted, seen in (
        ("name", config.name, description.name),
        ("version", config.version, description.version),
    ):
        if seen != wanted:
            raise StartError(f"{config.path / DESCRIPTION_FILE}: '{key}' is {seen!r}, expected {wanted!r}")
    try:
        options = config.override(read_serving_file(config.path, ServingOptions(engine=engine), description.platform))
    except ConfigurationError as error:
        raise StartError(str(error)) from None
    python = has_python(description, options)
    if not python and (options.isolated or options.memory_mb or options.parameters):
        raise StartError(f"{config.where}: isolated, memory_mb and parameters are of Python code, and there is none")
    if python and not options.engine.parallel:
        # Code that was not written for threads is right with one; more on request.
        options = replace(options, engine=replace(options.engine, parallel=1))
    return description, options


def has_python(description: Description, options: ServingOptions) -> bool:
    """Whether a user's Python code takes part."""
    return description.platform == PYTHON or any(step.platform == PYTHON for step in options.steps)


def read_description(directory: Path) -> Description:
    """What ``model.json`` in a model directory says. Raises StartError when it is not what it has to be."""
    file = directory / DESCRIPTION_FILE
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise StartError(f"{file}: {error.strerror}; a model is a directory with that file, or an .onnx file") from None
    except ValueError as error:
        raise StartError(f"{file}: no JSON: {error}") from None
    if not isinstance(document, dict):
        raise StartError(f"{file}: no JSON object")
    for key in ("name", "version"):
        if not isinstance(document.get(key), str):
            raise StartError(f"{file}: '{key}' is {document.get(key)!r}, expected a string")
    if document.get("platform") not in PLATFORMS:
        raise StartError(f"{file}: 'platform' is {document.get('platform')!r}, expected one of {', '.join(PLATFORMS)}")
    name = document.get("file")
    if not isinstance(name, str) or not name or Path(name).name != name:
        raise StartError(f"{file}: 'file' is {name!r}, expected the name of a file in {directory}")
    return Description(document["name"], document["version"], document["platform"], directory / name)


def _load(description: Description, options: ServingOptions, cache_directory: Path | None) -> Model:
    if description.platform == ONNX:
        return _load_onnx(description.file, options, cache_directory)
    if description.platform == PYTHON:
        return _load_python(description, description.file, options, options.inputs, options.outputs)
    return _load_pipeline(description, options, cache_directory)


def _load_onnx(file: Path, options: ServingOptions, cache_directory: Path | None) -> Model:
    from edgeml_runtime.engine.onnx_model import OnnxModel  # brings the engine's library

    return OnnxModel(file, options.engine, cache_directory)


def _load_python(
    description: Description,
    file: Path,
    options: ServingOptions,
    inputs: Mapping[str, TensorSpec],
    outputs: Mapping[str, TensorSpec],
) -> Model:
    context = Context(file.parent, description.name, description.version, options.parameters)
    if options.isolated:
        return IsolatedModel(file, context, inputs, outputs, options)
    return PythonModel(file, context, inputs, outputs)


def _load_pipeline(description: Description, options: ServingOptions, cache_directory: Path | None) -> Model:
    file = description.file
    if file.name != SERVING_FILE:
        raise StartError(f"{file.parent / DESCRIPTION_FILE}: 'file' of a pipeline is {SERVING_FILE}, not {file.name!r}")
    steps: list[LoadedStep] = []
    try:
        for step in options.steps:
            step_file = file.parent / step.file
            if step.platform == ONNX:
                model = _load_onnx(step_file, options, cache_directory)
            else:
                model = _load_python(description, step_file, options, step.input_specs, step.output_specs)
            steps.append(LoadedStep(step, model))
        return Pipeline(file, steps, options.inputs, options.outputs)
    except StartError:
        for loaded in steps:
            loaded.model.close()
        raise
