# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""What codecs, engine and transports say to each other: a model's signature and a checked request."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from edgeml_runtime.tensors import Array, TensorSpec


class Signature(Protocol):
    """What a codec needs to know of a model."""

    name: str
    version: str
    digest: str
    platform: str
    provider: str
    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]


@dataclass(frozen=True, slots=True)
class SequencePosition:
    """Where a request stands in its sequence; parameters sequence_id, sequence_start and sequence_end."""

    id: str
    start: bool
    end: bool


@dataclass(slots=True)
class InferenceRequest:
    """A checked request: every input of the model, and the outputs asked for, in order.

    ``timeout``: seconds that the client is willing to wait, None for the model's own deadline.
    ``queue_seconds``, ``compute_seconds``: how long it took, filled in by who computes it.
    """

    id: str
    inputs: dict[str, Array]
    outputs: list[str]
    timeout: float | None = None
    sequence: SequencePosition | None = None
    queue_seconds: float | None = None
    compute_seconds: float | None = None
