# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""How a model is served: ``serving.json`` in its directory, and the options that override it.

Precedence, weakest first: defaults, the configuration's ``engine``, ``serving.json``, and the
model's ``options`` in the configuration.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from edgeml_runtime.document import Reader
from edgeml_runtime.tensors import DTYPES, TensorSpec

SERVING_FILE = "serving.json"
ONNX = "onnxruntime_onnx"
PYTHON = "python"
PIPELINE = "pipeline"
PLATFORMS = (ONNX, PYTHON, PIPELINE)
#: Execution providers of ONNX Runtime. The last one is part of each ONNX Runtime, others of packages that have them.
TENSORRT, CUDA, OPENVINO, CPU = "TensorRT", "CUDA", "OpenVINO", "CPU"
PROVIDERS = (TENSORRT, CUDA, OPENVINO, CPU)

_OVERRIDABLE = (
    "engine",
    "batching",
    "sequence",
    "queue",
    "queue_mb",
    "deadline_seconds",
    "isolated",
    "memory_mb",
    "parameters",
)
_PYTHON_ONLY = ("isolated", "memory_mb", "parameters")
_FILE = re.compile(r"[^/\0]+")


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """Options of ONNX Runtime and of the threads that drive it.

    ``threads``: of one run. ``parallel``: runs at the same time, 0 for processors / threads.
    ``arena``: keep memory of past runs for the next. ``spinning``: threads of a run wait busily for
    the next part. ``cache``: keep the optimised graph in the configuration's ``cache_directory``.
    ``providers``: what computes, the first that loads a model; ``provider_fallback``: whether that may be
    another than the first.
    """

    threads: int = 1
    parallel: int = 0
    arena: bool = True
    spinning: bool = False
    optimization: str = "all"
    cache: bool = True
    providers: tuple[str, ...] = (CPU,)
    provider_fallback: bool = True


@dataclass(frozen=True, slots=True)
class Batching:
    """Micro-batching along the first dimension: at most ``max_size`` rows, waited for at most ``max_delay_ms``."""

    max_size: int
    max_delay_ms: float


@dataclass(frozen=True, slots=True)
class SequenceState:
    """A state tensor: what ``output`` gave is ``input`` of the sequence's next request; zeros at its start.

    ``shape`` replaces dimensions of any size; empty: 1 for each of them.
    """

    input: str
    output: str
    shape: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class SequenceOptions:
    """State per sequence id; at most ``max_sequences`` at once, each forgotten after ``idle_seconds``."""

    states: tuple[SequenceState, ...]
    max_sequences: int = 1000
    idle_seconds: float = 60.0


@dataclass(frozen=True, slots=True)
class Step:
    """A step of a pipeline. ``inputs``: its input to the pipeline's tensor; ``outputs``: its output to the tensor."""

    platform: str
    file: str
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    #: Of a Python step; an ONNX file tells its own.
    input_specs: Mapping[str, TensorSpec]
    output_specs: Mapping[str, TensorSpec]


@dataclass(frozen=True, slots=True)
class ServingOptions:
    """All options of one model.

    ``queue``: requests that may wait for an engine thread. ``queue_mb``: MiB of the inputs of all requests
    under way. ``deadline_seconds``: for requests that name none.
    ``inputs``, ``outputs``: of a Python model or a pipeline; an ONNX file tells its own.
    ``isolated``: run Python code in processes of its own, each with at most ``memory_mb`` MiB of data, 0 for no limit.
    ``parameters``: any JSON values, for Python code.
    """

    engine: EngineOptions = field(default_factory=EngineOptions)
    batching: Batching | None = None
    sequence: SequenceOptions | None = None
    queue: int = 256
    queue_mb: int = 256
    deadline_seconds: float = 30.0
    isolated: bool = False
    memory_mb: int = 0
    parameters: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, TensorSpec] = field(default_factory=dict)
    outputs: Mapping[str, TensorSpec] = field(default_factory=dict)
    steps: tuple[Step, ...] = ()


def read_engine_options(reader: Reader, document: object, key: str, base: EngineOptions) -> EngineOptions:
    """``base`` with what the document says. Raises ConfigurationError."""
    given = reader.mapping(document, key, optional=[option.name for option in fields(EngineOptions)])
    changes: dict[str, Any] = {}
    for name, low in (("threads", 1), ("parallel", 0)):
        if name in given:
            changes[name] = reader.integer(given[name], f"{key}.{name}", low, 1024)
    for name in ("arena", "spinning", "cache", "provider_fallback"):
        if name in given:
            changes[name] = reader.typed(given[name], f"{key}.{name}", bool)
    if "optimization" in given:
        changes["optimization"] = reader.choice(
            given["optimization"], f"{key}.optimization", ("all", "extended", "basic", "disable")
        )
    if "providers" in given:
        changes["providers"] = _providers(reader, given["providers"], f"{key}.providers")
    return replace(base, **changes)


def _providers(reader: Reader, value: object, key: str) -> tuple[str, ...]:
    names = tuple(
        reader.choice(name, f"{key}[{index}]", PROVIDERS) for index, name in enumerate(reader.typed(value, key, list))
    )
    if names[-1:] != (CPU,) or len(set(names)) < len(names):
        reader.fail(key, repr(list(names)), f"each of {', '.join(PROVIDERS)} once, {CPU} last", f"end it with {CPU}")
    return names


def read_overrides(reader: Reader, document: object, key: str, base: ServingOptions) -> ServingOptions:
    """``base`` with a model's ``options`` of the configuration. Raises ConfigurationError."""
    return _read(reader, reader.mapping(document, key, optional=_OVERRIDABLE), key, base)


def read_serving_file(directory: Path, base: ServingOptions, platform: str) -> ServingOptions:
    """``base`` with what ``serving.json`` of a model directory says, if it is there. Raises ConfigurationError."""
    file = directory / SERVING_FILE
    reader = Reader(str(file))
    allowed = {
        ONNX: tuple(name for name in _OVERRIDABLE if name not in _PYTHON_ONLY),
        PYTHON: (*_OVERRIDABLE, "inputs", "outputs"),
        PIPELINE: (*_OVERRIDABLE, "inputs", "outputs", "steps"),
    }[platform]
    required = {ONNX: (), PYTHON: ("inputs", "outputs"), PIPELINE: ("inputs", "outputs", "steps")}[platform]
    if not required and not file.exists():
        return base
    given = reader.mapping(Reader.load(file), "", required=required, optional=allowed)
    options = _read(reader, given, "", base)
    if not required:
        return options
    inputs = read_specs(reader, given["inputs"], "inputs")
    outputs = read_specs(reader, given["outputs"], "outputs")
    steps = _read_steps(reader, given["steps"], "steps") if "steps" in given else ()
    return replace(options, inputs=inputs, outputs=outputs, steps=steps)


def read_specs(reader: Reader, document: object, key: str) -> dict[str, TensorSpec]:
    """Declared tensors, by name: ``[{"name", "datatype", "shape"}]`` with -1 for a dimension of any size."""
    specs: dict[str, TensorSpec] = {}
    for index, value in enumerate(reader.typed(document, key, list)):
        at = f"{key}[{index}]"
        given = reader.mapping(value, at, required=("name", "datatype", "shape"), optional=("raw",))
        name = reader.matching(given["name"], f"{at}.name", re.compile(r".+"), "a name")
        if name in specs:
            reader.fail(f"{at}.name", repr(name), "each tensor once", "remove one of the two")
        datatype = reader.choice(given["datatype"], f"{at}.datatype", tuple(DTYPES))
        shape = reader.typed(given["shape"], f"{at}.shape", list)
        for position, size in enumerate(shape):
            reader.integer(size, f"{at}.shape[{position}]", -1, 2**31 - 1)
        raw = reader.typed(given.get("raw", False), f"{at}.raw", bool)
        if raw and datatype != "BYTES":
            reader.fail(f"{at}.raw", f"true for {datatype}", "true for BYTES", "remove it")
        specs[name] = TensorSpec(name, datatype, tuple(shape), raw)
    if not specs:
        reader.fail(key, "no tensor", "at least one", "declare the model's tensors")
    return specs


def _read(reader: Reader, given: dict[str, Any], key: str, base: ServingOptions) -> ServingOptions:
    prefix = f"{key}." if key else ""
    changes: dict[str, Any] = {}
    if "engine" in given:
        changes["engine"] = read_engine_options(reader, given["engine"], f"{prefix}engine", base.engine)
    if "batching" in given:
        changes["batching"] = _read_batching(reader, given["batching"], f"{prefix}batching")
    if "sequence" in given:
        changes["sequence"] = _read_sequence(reader, given["sequence"], f"{prefix}sequence")
    if "queue_mb" in given:
        changes["queue_mb"] = reader.integer(given["queue_mb"], f"{prefix}queue_mb", 1, 1_000_000)
    if "queue" in given:
        changes["queue"] = reader.integer(given["queue"], f"{prefix}queue", 0, 1_000_000)
    if "deadline_seconds" in given:
        changes["deadline_seconds"] = reader.number(
            given["deadline_seconds"], f"{prefix}deadline_seconds", 0.001, 86400
        )
    if "isolated" in given:
        changes["isolated"] = reader.typed(given["isolated"], f"{prefix}isolated", bool)
    if "memory_mb" in given:
        changes["memory_mb"] = reader.integer(given["memory_mb"], f"{prefix}memory_mb", 0, 2**31 - 1)
    if "parameters" in given:
        changes["parameters"] = reader.typed(given["parameters"], f"{prefix}parameters", dict)
    options = replace(base, **changes)
    if options.batching and options.sequence:
        reader.fail(f"{prefix}batching", "batching of a model with sequences", "one of the two", "remove one of them")
    return options


def _read_batching(reader: Reader, document: object, key: str) -> Batching | None:
    if document is None:
        return None
    given = reader.mapping(document, key, required=("max_size",), optional=("max_delay_ms",))
    return Batching(
        max_size=reader.integer(given["max_size"], f"{key}.max_size", 1, 65536),
        max_delay_ms=reader.number(given.get("max_delay_ms", 1), f"{key}.max_delay_ms", 0, 10_000),
    )


def _read_sequence(reader: Reader, document: object, key: str) -> SequenceOptions | None:
    if document is None:
        return None
    given = reader.mapping(document, key, required=("states",), optional=("max_sequences", "idle_seconds"))
    states = []
    for index, value in enumerate(reader.typed(given["states"], f"{key}.states", list)):
        at = f"{key}.states[{index}]"
        state = reader.mapping(value, at, required=("input", "output"), optional=("shape",))
        shape = reader.typed(state.get("shape", []), f"{at}.shape", list)
        states.append(
            SequenceState(
                input=reader.typed(state["input"], f"{at}.input", str),
                output=reader.typed(state["output"], f"{at}.output", str),
                shape=tuple(reader.integer(size, f"{at}.shape", 0, 2**31 - 1) for size in shape),
            )
        )
    if not states:
        reader.fail(f"{key}.states", "no state", "at least one", "name the input and the output that hold the state")
    return SequenceOptions(
        states=tuple(states),
        max_sequences=reader.integer(given.get("max_sequences", 1000), f"{key}.max_sequences", 1, 10_000_000),
        idle_seconds=reader.number(given.get("idle_seconds", 60), f"{key}.idle_seconds", 0.001, 86400),
    )


def _read_steps(reader: Reader, document: object, key: str) -> tuple[Step, ...]:
    steps = []
    for index, value in enumerate(reader.typed(document, key, list)):
        at = f"{key}[{index}]"
        given = reader.mapping(
            value,
            at,
            required=("platform", "file", "inputs", "outputs"),
            optional=("input_specs", "output_specs"),
        )
        platform = reader.choice(given["platform"], f"{at}.platform", (ONNX, PYTHON))
        specs: dict[str, Mapping[str, TensorSpec]] = {"input_specs": {}, "output_specs": {}}
        for name in specs:
            if platform == PYTHON and name not in given:
                reader.fail(f"{at}.{name}", "no such key", "the tensors of a Python step", "add the key")
            if name in given:
                specs[name] = read_specs(reader, given[name], f"{at}.{name}")
        steps.append(
            Step(
                platform=platform,
                file=reader.matching(given["file"], f"{at}.file", _FILE, "the name of a file in the directory"),
                inputs=_read_names(reader, given["inputs"], f"{at}.inputs"),
                outputs=_read_names(reader, given["outputs"], f"{at}.outputs"),
                input_specs=specs["input_specs"],
                output_specs=specs["output_specs"],
            )
        )
    if not steps:
        reader.fail(key, "no step", "at least one", "add a step")
    return tuple(steps)


def _read_names(reader: Reader, document: object, key: str) -> dict[str, str]:
    names: dict[str, Any] = reader.typed(document, key, dict)
    return {name: reader.typed(tensor, f"{key}.{name}", str) for name, tensor in names.items()}
