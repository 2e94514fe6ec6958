# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Execution providers of ONNX Runtime: their full names, and what each is told."""

import logging
import os
import shutil
import time
from contextlib import suppress
from pathlib import Path

import onnxruntime

from edgeml_runtime.engine.onnx_cache import FORGOTTEN_SECONDS, LARGEST_TOTAL_BYTES, cache_key
from edgeml_runtime.serving import CPU, CUDA, OPENVINO, TENSORRT, EngineOptions

FULL_NAMES = {
    TENSORRT: "TensorrtExecutionProvider",
    CUDA: "CUDAExecutionProvider",
    OPENVINO: "OpenVINOExecutionProvider",
    CPU: "CPUExecutionProvider",
}

logger = logging.getLogger(__name__)


def session_providers(
    provider: str, file: Path, engine: EngineOptions, cache_directory: Path | None
) -> list[str | tuple[str, dict[str, str]]]:
    """What a session is opened with: the provider, and those after it, which compute what it leaves of the graph.

    Raises RuntimeError where this ONNX Runtime does not have the provider.
    """
    known = onnxruntime.get_available_providers()
    if FULL_NAMES[provider] not in known:
        names = ", ".join(name for name, full in FULL_NAMES.items() if full in known)
        raise RuntimeError(f"this ONNX Runtime has {names} only")
    if provider == CPU:
        return [FULL_NAMES[CPU]]
    if provider in (TENSORRT, CUDA):
        # The libraries of CUDA come with the image's Python packages, where the loader does not look.
        onnxruntime.preload_dlls()
    following = engine.providers[engine.providers.index(provider) :]
    return [
        FULL_NAMES[name] if name == CPU else (FULL_NAMES[name], _settings(name, file, engine, cache_directory))
        for name in following
        if FULL_NAMES[name] in known
    ]


def _settings(name: str, file: Path, engine: EngineOptions, cache_directory: Path | None) -> dict[str, str]:
    if name == OPENVINO:
        return {"device_type": CPU, "num_of_threads": str(engine.threads)}
    if name == TENSORRT and engine.cache and cache_directory is not None:
        try:
            return _engine_cache(file, engine, cache_directory)
        except OSError as error:
            logger.warning("%s: TensorRT builds it without the cache: %s", file, error)
    return {}


def _engine_cache(file: Path, engine: EngineOptions, cache_directory: Path) -> dict[str, str]:
    """Where TensorRT keeps what it has built, which takes minutes: a directory for each content of a model.

    It names its files by the graph alone, so that other weights would get the answers of these.
    """
    key = cache_key(file, onnxruntime.__version__, engine.optimization)
    if key is None:
        return {}
    directory = cache_directory / "tensorrt" / key
    directory.mkdir(parents=True, exist_ok=True)
    os.utime(directory)  # used lately
    _evict(directory.parent)
    return {"trt_engine_cache_enable": "1", "trt_engine_cache_path": str(directory)}


def _evict(kept: Path) -> None:
    """Remove the engines used least when there are too many bytes: a session that has loaded one does not need it."""
    found = []
    for directory in kept.iterdir():
        with suppress(FileNotFoundError):  # another process removes them as well
            size = sum(file.stat().st_size for file in directory.iterdir())
            found.append((directory.stat().st_mtime, size, directory))
    total = 0
    for used, size, directory in sorted(found, reverse=True):
        total += size
        # Another process may be building in one that was used lately.
        if total > LARGEST_TOTAL_BYTES and time.time() - used > FORGOTTEN_SECONDS:
            shutil.rmtree(directory, ignore_errors=True)
