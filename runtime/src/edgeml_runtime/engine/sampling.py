# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""A share of live requests with their answers, kept for a time for whoever holds the admin socket.

He compares another release by them. Live requests never wait for it: they are copied, as far as there is room. Nothing
is written anywhere, and nothing is kept longer than somebody asks for it.
"""

import asyncio
from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from random import random
from typing import TYPE_CHECKING

from edgeml_runtime.document import Reader
from edgeml_runtime.errors import ConfigurationError, invalid
from edgeml_runtime.inference import InferenceRequest
from edgeml_runtime.tensors import Array, byte_size

if TYPE_CHECKING:
    from edgeml_runtime.engine.engine import Engine
    from edgeml_runtime.engine.served_model import ServedModel

#: Of all copies together, so that all that copying ever takes is bounded too; and of those that nobody has taken yet.
MOST_BYTES = 64 << 20
MOST_WAITING = 8 << 20
#: Of a tensor of strings, which are counted one by one.
_MOST_STRINGS = 1000
#: After which nobody will ask for the rest.
_IDLE_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Sampled:
    """A request and the answer that its client got."""

    model: "ServedModel"
    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]
    #: Bytes.
    size: int


class Sample:
    """What is kept of one model, for as long as it is the model's ``sample``."""

    def __init__(self, sampling: "Sampling", model: "ServedModel", share: float, requests: int) -> None:
        self._sampling = sampling
        self._model = model
        self._share = share
        self._requests = requests
        # What somebody's code may change later, or what would keep a whole batch.
        self._copies_outputs = model.model.blocking or model.options.batching is not None
        #: Requests that came, that are kept, and that there was no room for.
        self.seen = self.kept = self.dropped = 0

    @property
    def is_open(self) -> bool:
        """Whether requests are still kept."""
        return self._model.sample is self

    def begin(self, request: InferenceRequest) -> dict[str, Array] | None:
        """The inputs, copied before the model can change them; None for a request that is not chosen."""
        self.seen += 1
        if random() >= self._share:  # noqa: S311 - no secret
            return None
        if not self._has_room(request.inputs.values()):
            self.dropped += 1
            return None
        self._sampling.account(_bytes(request.inputs.values()))
        return {name: tensor.copy() for name, tensor in request.inputs.items()}

    def end(self, inputs: dict[str, Array], request: InferenceRequest, results: list[Array] | None) -> None:
        """Keep the request, now that its answer is there; not one without an answer."""
        if not self._sampling.has(self):  # forgotten meanwhile
            return
        self._sampling.account(-_bytes(inputs.values()))
        if results is None or not self.is_open:
            return
        if not self._has_room((*inputs.values(), *results)):
            self.dropped += 1
            return
        self.kept += 1
        if self._copies_outputs:
            results = [tensor.copy() for tensor in results]
        outputs = dict(zip(request.outputs, results, strict=True))
        size = _bytes((*inputs.values(), *outputs.values()))
        self._sampling.keep(Sampled(self._model, inputs, outputs, size))
        if self.kept == self._requests:
            self.close()

    def close(self) -> None:
        """Keep no more requests."""
        if self.is_open:
            self._model.sample = None

    def _has_room(self, tensors: Collection[Array]) -> bool:
        if any(tensor.dtype.kind == "O" and tensor.size > _MOST_STRINGS for tensor in tensors):
            return False
        return self._sampling.has_room(_bytes(tensors))


class Sampling:
    """All that is sampled of a server. Used on the event loop alone."""

    def __init__(self, engine: "Engine") -> None:
        self._engine = engine
        self._samples: dict[str, Sample] = {}
        self._kept: deque[Sampled] = deque()
        self._timers: list[asyncio.TimerHandle] = []
        self._idle: asyncio.TimerHandle | None = None
        #: Of all that was copied since the start, and of what nobody has taken.
        self._bytes = self._waiting = 0

    def start(self, document: object) -> None:
        """Forget what is kept, and sample the models of ``{NAME: {"share", "requests", "seconds"}}`` from now on.

        Of a model with several versions the one that is meant when none is named; not one with sequences, whose
        answers depend on others. Raises RequestError.
        """
        wanted = _read(document)
        models = {name: self._engine.model(name, "") for name in wanted}
        self.forget()
        loop = asyncio.get_running_loop()
        for name, (share, requests, seconds) in wanted.items():
            sample = self._samples[name] = models[name].sample = Sample(self, models[name], share, requests)
            self._timers.append(loop.call_later(seconds, sample.close))
        self._wait_for_somebody(max((seconds for _, _, seconds in wanted.values()), default=0.0))

    def forget(self) -> None:
        """End it, and keep nothing."""
        for sample in self._samples.values():
            sample.close()
        for timer in self._timers:
            timer.cancel()
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None
        self._timers.clear()
        self._samples.clear()
        self._kept.clear()
        self._bytes = self._waiting = 0

    def has_room(self, size: int) -> bool:
        """Whether so many bytes more can be kept."""
        return self._bytes + size <= MOST_BYTES and self._waiting + size <= MOST_WAITING

    def has(self, sample: Sample) -> bool:
        """Whether it has not been forgotten."""
        return sample in self._samples.values()

    def account(self, size: int) -> None:
        """So many bytes more are copied, or less."""
        self._bytes += size
        self._waiting += size

    def keep(self, sampled: Sampled) -> None:
        """Add a request to what is kept."""
        self.account(sampled.size)
        self._kept.append(sampled)

    def take(self) -> Sampled | None:
        """The oldest request that is kept, which is not kept any longer; None when there is none."""
        if not self._kept:
            return None
        self._wait_for_somebody()
        sampled = self._kept.popleft()
        self._waiting -= sampled.size
        return sampled

    def counts(self) -> dict[str, dict[str, object]]:
        """For each model: ``open`` while its requests are sampled, how many were ``seen``, ``kept`` and ``dropped``."""
        return {
            name: {"open": sample.is_open, "seen": sample.seen, "kept": sample.kept, "dropped": sample.dropped}
            for name, sample in self._samples.items()
        }

    def _wait_for_somebody(self, seconds: float = 0.0) -> None:
        if self._idle is not None:
            self._idle.cancel()
        self._idle = asyncio.get_running_loop().call_later(seconds + _IDLE_SECONDS, self.forget)


def _bytes(tensors: Collection[Array]) -> int:
    return sum(map(byte_size, tensors))


def _read(document: object) -> dict[str, tuple[float, int, float]]:
    """Share, requests and seconds for each model. Raises RequestError (invalid)."""
    reader = Reader("sample")
    wanted = {}
    try:
        for name, settings in reader.typed(document, "the body", dict).items():
            given = reader.mapping(settings, name, required=("share", "requests", "seconds"))
            wanted[name] = (
                reader.number(given["share"], f"{name}.share", 0, 1),
                reader.integer(given["requests"], f"{name}.requests", 1, 10_000),
                reader.number(given["seconds"], f"{name}.seconds", 0, 3600),
            )
    except ConfigurationError as error:
        raise invalid(str(error)) from None
    return wanted
