# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""``edgeml-runtime serve PATH...``: a configuration from paths of models, and what to tell once they are served."""

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from edgeml_runtime import __version__
from edgeml_runtime.cli.table import described
from edgeml_runtime.config import Address, Config
from edgeml_runtime.config_file import read_config
from edgeml_runtime.engine.engine import Engine
from edgeml_runtime.engine.golden import golden_files
from edgeml_runtime.engine.loading import DESCRIPTION_FILE, read_description
from edgeml_runtime.errors import ConfigurationError, StartError
from edgeml_runtime.inference import Signature

#: Listeners when none are named: the ports that clients of the protocol expect.
LISTENERS: Mapping[str, str] = {"rest": "127.0.0.1:8000", "grpc": "127.0.0.1:8001", "metrics": "127.0.0.1:8002"}
#: The version of a bare ONNX file.
FILE_VERSION = "1.0.0"

_PLACE = "command line"
_MOST_ELEMENTS = 16  # of a request that fits on a line


def config_of_paths(paths: Sequence[Path], listeners: Mapping[str, Sequence[str]]) -> Config:
    """A configuration that serves these models, with defaults for all else. Raises ConfigurationError.

    A path is a model directory, or an ONNX file, whose name is the model's. ``listeners``: addresses
    by protocol; a protocol without any has those of LISTENERS.
    """
    models = [_model(path) for path in paths]
    listen = {protocol: list(listeners.get(protocol) or [LISTENERS[protocol]]) for protocol in LISTENERS}
    try:
        return read_config({"listen": listen, "models": models}, _PLACE)
    except ConfigurationError as error:
        protocol = error.key.removeprefix("listen.").partition("[")[0]
        if protocol not in LISTENERS:
            raise
        remedy = "give another address; other hosts need TLS and tokens, which only a configuration file can hold"
        raise ConfigurationError(_PLACE, f"--{protocol}", error.seen, error.allowed, remedy) from None


def welcome(config: Config, engine: Engine) -> str:
    """What is served where, and what to try, as lines for people. ``engine`` has loaded all models."""
    models = [engine.model(model.name, model.version) for model in config.models]
    lines = [f"edgeml-runtime {__version__} serves"]
    lines += [
        f"  {model.name} {model.version}: {described(model.inputs.values())} -> {described(model.outputs.values())}"
        for model in models
    ]
    lines.append("at")
    lines += [f"  REST     {_url(address)}" for address in config.rest]
    lines += [f"  gRPC     {_url(address, 'grpc')}" for address in config.grpc]
    lines += [f"  metrics  {_url(address)}{'' if address.path else '/metrics'}" for address in config.metrics]
    address = config.rest[0]
    curl = (
        f"curl --unix-socket {shlex.quote(address.path)} http://localhost" if address.path else f"curl {_url(address)}"
    )
    request = _example(config.models[0].path, models[0])
    infer = f"/infer -d {request}" if request else ""
    return "\n".join((*lines, "try", f"  {curl}/v2/models/{models[0].name}{infer}"))


def _model(path: Path) -> dict[str, str]:
    if path.is_file() and path.suffix == ".onnx":
        return {"name": path.stem, "version": FILE_VERSION, "path": str(path)}
    allowed = f"a directory with {DESCRIPTION_FILE}, or an .onnx file"
    if not path.is_dir():
        seen = f"{str(path)!r}, " + ("another file" if path.exists() else "which does not exist")
        raise ConfigurationError(_PLACE, "PATH", seen, allowed, "correct the path")
    try:
        description = read_description(path)
    except StartError as error:
        raise ConfigurationError(_PLACE, "PATH", str(error), allowed, "correct the directory") from None
    return {"name": description.name, "version": description.version, "path": str(path)}


def _url(address: Address, scheme: str = "http") -> str:
    if address.path:
        return address.text
    return (
        f"{scheme}://[{address.host}]:{address.port}"
        if ":" in address.host
        else f"{scheme}://{address.host}:{address.port}"
    )


def _example(path: Path, model: Signature) -> str:
    """A request as an argument of curl's -d: a golden case, or zeros where they are few, else nothing."""
    if files := golden_files(path):
        return shlex.quote(f"@{files[0]}")
    arrays = {spec: spec.zeros() for spec in model.inputs.values()}
    if sum(array.size for array in arrays.values()) > _MOST_ELEMENTS:
        return ""
    tensors = [
        {"name": spec.name, "datatype": spec.datatype, "shape": array.shape, "data": array.reshape(-1).tolist()}
        for spec, array in arrays.items()
    ]
    return shlex.quote(json.dumps({"inputs": tensors}))
