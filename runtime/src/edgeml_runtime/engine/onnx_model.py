# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""A model in ONNX Runtime."""

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import perf_counter

# Imported where the first model is loaded: listeners answer before this is done.
import onnxruntime

from edgeml_runtime.engine.model import Cancellation
from edgeml_runtime.engine.onnx_cache import GraphCache, cache_key
from edgeml_runtime.engine.onnx_providers import FULL_NAMES, session_providers
from edgeml_runtime.errors import Failure, RequestError, StartError, invalid
from edgeml_runtime.serving import CPU, EngineOptions
from edgeml_runtime.tensors import Array, TensorSpec

_DATATYPES = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
}

_OPTIMIZATION = {
    "all": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
    "extended": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "basic": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "disable": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
}

_InvalidArgument = onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument

#: A graph that is read and optimised in less is not worth a file.
WORTHWHILE_SECONDS = 0.05

_CODE = re.compile(r"^\[ONNXRuntimeError\] : \d+ : [A-Z_]+ : ")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_SOURCE = re.compile(r"\S*onnxruntime\S*:\d+ (?:[\w:~<>&*, ]*\((?:[^()]|\([^()]*\))*\)(?: const)? )?")

logger = logging.getLogger(__name__)


class OnnxModel:
    """A loaded ONNX model: its inputs and outputs by name, and ``run``."""

    blocking = False

    def __init__(self, file: Path, engine: EngineOptions, cache_directory: Path | None) -> None:
        """Load ``file``; optimised graphs are kept in ``cache_directory``. Raises StartError."""
        try:
            self._session, self.provider = _load_first(file, engine, cache_directory)
        except StartError:
            raise
        except Exception as error:  # the engine's exceptions have no common base
            raise StartError(f"{file}: ONNX Runtime cannot load it: {_first_line(error)}") from None
        self.inputs = _specs(file, self._session.get_inputs())
        self.outputs = _specs(file, self._session.get_outputs(), leave_out=True)

    def run(
        self, inputs: Mapping[str, Array], outputs: Sequence[str], cancellation: Cancellation | None = None
    ) -> list[Array]:
        """Compute the named outputs; see Model.run."""
        options = None
        if cancellation is not None:
            options = onnxruntime.RunOptions()
            cancellation.bind(lambda: setattr(options, "terminate", True))
        try:
            results: list[Array] = self._session.run(outputs, inputs, options)
        except _InvalidArgument as error:
            raise invalid(_first_line(error)) from None
        except Exception as error:  # the engine's exceptions have no common base
            if cancellation is None or not cancellation.cancelled:
                logger.error("the engine failed: %s", _first_line(error))
            raise RequestError(Failure.INTERNAL, f"the engine failed: {_first_line(error)}") from None
        return results

    def close(self) -> None:
        """Give the session's memory back."""
        del self._session


def _load_first(
    file: Path, engine: EngineOptions, cache_directory: Path | None
) -> tuple[onnxruntime.InferenceSession, str]:
    """A session of the first provider that loads the model, and which that is. Raises StartError."""
    for name in engine.providers[:-1]:
        try:
            providers = session_providers(name, file, engine, cache_directory)
            return _open(file, engine, providers=providers), name
        except Exception as error:  # the engine's exceptions have no common base
            reason = f"{file}: execution provider {name} cannot load it: {_first_line(error)}"
            if not engine.provider_fallback:
                remedy = "install it, change engine.providers, or set engine.provider_fallback to true"
                raise StartError(f"{reason}; {remedy}") from None
            logger.warning("%s; the next one of %s is tried", reason, ", ".join(engine.providers))
    return _load(file, engine, cache_directory), CPU


def _load(file: Path, engine: EngineOptions, cache_directory: Path | None) -> onnxruntime.InferenceSession:
    if cache_directory is None or not engine.cache or engine.optimization == "disable" or not file.is_file():
        return _open(file, engine)
    try:
        return _load_cached(file, engine, GraphCache(cache_directory))
    except OSError as error:
        logger.warning("%s: the graph is optimised without the cache: %s", file, error)
        return _open(file, engine)


def _load_cached(file: Path, engine: EngineOptions, cache: GraphCache) -> onnxruntime.InferenceSession:
    """A session from the cache, or a new one whose graph is put there. Raises OSError where the cache fails."""
    key = cache_key(file, onnxruntime.__version__, engine.optimization)
    if key is None:
        return _open(file, engine)
    found = cache.find(key)
    if found is not None:
        try:
            return _open(found, engine, optimized=True)
        except Exception as error:  # the engine's exceptions have no common base
            logger.warning("%s: ONNX Runtime cannot load it, it is made again: %s", found, _first_line(error))
            cache.remove(found)
    started = perf_counter()
    session = _open(file, engine)
    seconds = perf_counter() - started
    if seconds < WORTHWHILE_SECONDS or cache.refuses(key):
        return session
    signature = _signature(session)
    del session  # there may be no memory for two
    with cache.unfinished() as written:
        try:
            _open(file, engine, save=written)
            started = perf_counter()
            session = _open(written, engine, optimized=True)
            # Not counted is the time for checking its content: other threads go on meanwhile.
            pays = perf_counter() - started < seconds
            same = _signature(session) == signature
        except Exception as error:  # the engine's exceptions have no common base
            logger.debug("%s: its optimised graph cannot be kept: %s", file, _first_line(error))
            same = pays = False
        if same and pays:
            cache.keep(key, written)
            return session
    cache.refuse(key)
    return _open(file, engine)


def _open(
    file: Path,
    engine: EngineOptions,
    optimized: bool = False,
    save: Path | None = None,
    providers: Sequence[str | tuple[str, dict[str, str]]] = (FULL_NAMES[CPU],),
) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = engine.threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # nothing: errors are raised as well, and told here in one line
    options.enable_cpu_mem_arena = engine.arena
    options.graph_optimization_level = _OPTIMIZATION["disable" if optimized else engine.optimization]
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if engine.spinning else "0")
    if save is not None:
        options.optimized_model_filepath = str(save)
    session = onnxruntime.InferenceSession(str(file), options, providers=list(providers), enable_fallback=False)
    first = providers[0]
    if session.get_providers()[0] != (first if isinstance(first, str) else first[0]):
        raise RuntimeError("its library does not load")
    return session


def _signature(session: onnxruntime.InferenceSession) -> list[tuple[str, str, list[int | str | None]]]:
    tensors = (*session.get_inputs(), *session.get_outputs())
    return [(tensor.name, tensor.type, tensor.shape) for tensor in tensors]


def _specs(file: Path, tensors: Sequence[onnxruntime.NodeArg], leave_out: bool = False) -> dict[str, TensorSpec]:
    """The tensors by name; ``leave_out`` what is no tensor, if something else is left."""
    specs = {}
    others = {tensor.name: tensor.type for tensor in tensors if tensor.type not in _DATATYPES}
    if leave_out and others and len(others) < len(tensors):
        tensors = [tensor for tensor in tensors if tensor.name not in others]
        logger.warning("%s: not served: %s", file, "; ".join(_why_not(*other) for other in others.items()))
    for tensor in tensors:
        datatype = _DATATYPES.get(tensor.type)
        if datatype is None:
            raise StartError(f"{file}: {_why_not(tensor.name, tensor.type)}")
        shape = tuple(size if isinstance(size, int) else -1 for size in tensor.shape)
        specs[tensor.name] = TensorSpec(tensor.name, datatype, shape)
    return specs


def _why_not(name: str, kind: str) -> str:
    remedy = "; convert the model with zipmap=False to have a tensor instead" if "map(" in kind else ""
    return f"'{name}' is a {kind}, which the protocol cannot carry{remedy}"


def _first_line(error: Exception) -> str:
    """What happened, in one line: without ONNX Runtime's codes, colours, source files and signatures."""
    text = _COLOUR.sub("", str(error)).strip().partition("\n")[0]
    return _SOURCE.sub("", _CODE.sub("", text))
