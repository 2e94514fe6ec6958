# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""``edgeml-runtime models``: what a server has, or what a configuration would serve."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from edgeml_runtime.cli.table import described, table
from edgeml_runtime.client.connect import connect
from edgeml_runtime.client.protocol import Access, Refused, Target
from edgeml_runtime.config import Config
from edgeml_runtime.engine.loading import load_model
from edgeml_runtime.errors import StartError
from edgeml_runtime.tensors import TensorSpec

READY = "READY"
UNAVAILABLE = "UNAVAILABLE"


@dataclass(frozen=True, slots=True)
class Listed:
    """A model. ``state``: as the server says, READY, UNAVAILABLE, ..., or empty; ``reason``: why it is not ready."""

    name: str
    version: str
    state: str
    reason: str = ""
    platform: str = ""
    inputs: Sequence[TensorSpec] = ()
    outputs: Sequence[TensorSpec] = ()

    def as_json(self) -> dict[str, Any]:
        """As a JSON object, tensors as in the protocol's metadata."""
        document = asdict(self)
        for tensor in (*document["inputs"], *document["outputs"]):
            del tensor["raw"]  # no server tells it
        return document


def served_models(target: Target, access: Access, named: Sequence[tuple[str, str]]) -> list[Listed]:
    """The models of a server with these names and versions; with no names, all of its repository index.

    Raises Unreachable, Refused, ConfigurationError.
    """
    client = connect(target, access)
    try:
        client.live()  # an answer tells a server that cannot be reached from one that has no index
        models = [
            Listed(name, version, READY if client.model_ready(name, version) else UNAVAILABLE)
            for name, version in named
        ] or [Listed(entry.name, entry.version, entry.state, entry.reason) for entry in client.index()]
        for index, model in enumerate(models):
            if model.state != UNAVAILABLE:
                try:
                    metadata = client.model_metadata(model.name, model.version)
                except Refused as error:
                    models[index] = replace(model, reason=model.reason or str(error))
                else:
                    models[index] = replace(
                        model, platform=metadata.platform, inputs=metadata.inputs, outputs=metadata.outputs
                    )
        return models
    finally:
        client.close()


def configured_models(config: Config) -> list[Listed]:
    """The configured models, each loaded here and let go again; one that cannot be loaded is UNAVAILABLE."""
    models = []
    for model in config.models:
        try:
            description, _options, loaded = load_model(model, config.engine, config.cache_directory)
        except StartError as error:
            models.append(Listed(model.name, model.version, UNAVAILABLE, str(error)))
            continue
        inputs, outputs = tuple(loaded.inputs.values()), tuple(loaded.outputs.values())
        models.append(Listed(model.name, model.version, READY, "", description.platform, inputs, outputs))
        loaded.close()
    return models


def as_text(models: Sequence[Listed]) -> str:
    """A table for people."""
    rows = []
    for model in models:
        tensors = f"{described(model.inputs)} -> {described(model.outputs)}" if model.inputs or model.outputs else ""
        detail = "; ".join(filter(None, (model.reason, tensors)))
        rows.append((model.name, model.version or "-", model.state or "-", model.platform or "-", detail or "-"))
    return table(("NAME", "VERSION", "STATE", "PLATFORM", "TENSORS OR REASON"), rows)
