# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Models with a state per sequence of requests: what an output gave is an input of the sequence's next request.

The states are no part of the public signature. They belong to one loaded version of a model and end with it.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from time import monotonic

from edgeml_runtime.engine.model import Cancellation, Model
from edgeml_runtime.errors import Failure, RequestError, StartError, invalid
from edgeml_runtime.inference import InferenceRequest, SequencePosition
from edgeml_runtime.serving import SequenceOptions
from edgeml_runtime.tensors import Array


class State:
    """Where a sequence stands. ``tensors``: the states, None until its first request has succeeded.

    ``pending``: its requests under way; ``running``: one of them is on an engine thread.
    """

    __slots__ = ("ended", "id", "pending", "running", "tensors", "used")

    def __init__(self, id: str) -> None:
        self.id = id
        self.tensors: list[Array] | None = None
        self.pending = 0
        self.running = False
        self.ended = False
        self.used = monotonic()

    def advance(self, request: InferenceRequest, results: list[Array]) -> list[Array]:
        """Keep the states at the end of what ``SequenceModel.step`` gave; the rest is the client's."""
        count = len(request.outputs)
        self.tensors = results[count:]
        if request.sequence is not None and request.sequence.end:
            self.ended = True
        return results[:count]


class SequenceModel:
    """A model without its states: as a Model, each run is a sequence of one request."""

    def __init__(self, model: Model, options: SequenceOptions) -> None:
        """Raises StartError when the model lacks a state's input or output, or they do not fit each other."""
        self.blocking = model.blocking
        self.provider = model.provider
        self._model = model
        self._state_inputs = [state.input for state in options.states]
        self._state_outputs = [state.output for state in options.states]
        for kind, names, known in (
            ("input", self._state_inputs, model.inputs),
            ("output", self._state_outputs, model.outputs),
        ):
            for name in names:
                if name not in known:
                    raise StartError(f"sequence.states: the model has no {kind} '{name}', but {', '.join(known)}")
                if names.count(name) > 1:
                    raise StartError(f"sequence.states: {kind} '{name}' is named more than once")
        self._start: list[Array] = []
        for state in options.states:
            spec, output = model.inputs[state.input], model.outputs[state.output]
            if output.datatype != spec.datatype:
                raise StartError(
                    f"sequence.states: input '{state.input}' is {spec.datatype}, "
                    f"output '{state.output}' is {output.datatype}"
                )
            try:
                start = spec.zeros(spec.check(spec.datatype, list(state.shape)) if state.shape else ())
            except RequestError as error:
                raise StartError(f"sequence.states: {error}") from None
            start.flags.writeable = False  # shared by all sequences that begin
            self._start.append(start)
        self.inputs = {name: spec for name, spec in model.inputs.items() if name not in self._state_inputs}
        self.outputs = {name: spec for name, spec in model.outputs.items() if name not in self._state_outputs}

    def run(
        self, inputs: Mapping[str, Array], outputs: Sequence[str], cancellation: Cancellation | None = None
    ) -> list[Array]:
        """See Model.run."""
        return self._step(self._start, inputs, outputs, cancellation)[: len(outputs)]

    def step(self, state: State, request: InferenceRequest, cancellation: Cancellation | None = None) -> list[Array]:
        """The requested outputs, then the new states. ``state`` is left as it is: see State.advance.

        Raises RequestError: invalid when the sequence has ended or its first request failed, and as Model.run.
        """
        if request.sequence is not None and request.sequence.start:
            tensors = self._start
        elif state.tensors is None or state.ended:
            why = "has ended" if state.ended else "did not begin, since its first request failed"
            raise invalid(f"sequence '{state.id}' {why}; begin anew with sequence_start")
        else:
            tensors = state.tensors
        return self._step(tensors, request.inputs, request.outputs, cancellation)

    def close(self) -> None:
        """See Model.close."""
        self._model.close()

    def _step(
        self,
        tensors: list[Array],
        inputs: Mapping[str, Array],
        outputs: Sequence[str],
        cancellation: Cancellation | None,
    ) -> list[Array]:
        inputs = {**inputs, **dict(zip(self._state_inputs, tensors, strict=True))}
        results = self._model.run(inputs, [*outputs, *self._state_outputs], cancellation)
        for index, (name, start) in enumerate(zip(self._state_outputs, self._start, strict=True), len(outputs)):
            state = results[index]
            if state.shape != start.shape:
                raise RequestError(
                    Failure.INTERNAL,
                    f"state '{name}' has shape {list(state.shape)}; it must keep its shape {list(start.shape)}",
                )
            # Keep the state alone, not what it is a part of, and nothing that code may write into again.
            if state.base is not None or self.blocking:
                results[index] = state.copy()
        return results


class Sequences:
    """The sequences under way of one loaded model, by id. Used on the event loop alone."""

    def __init__(self, name: str, version: str, options: SequenceOptions) -> None:
        self._name = name
        self._version = version
        self._options = options
        #: In the order in which they were last used.
        self._states: OrderedDict[str, State] = OrderedDict()
        self._sweep: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._states)

    def enter(self, position: SequencePosition | None) -> State:
        """The state for a request, which is pending until ``leave``.

        Raises RequestError: invalid without an id or when no such sequence is under way, too many
        when it would begin one more than allowed.
        """
        if position is None or not position.id:
            raise invalid(f"model '{self._name}' keeps a state per sequence: parameter sequence_id is required")
        self._expire()
        state = self._states.get(position.id)
        if position.start:
            if state is None and len(self._states) >= self._options.max_sequences:
                raise RequestError(
                    Failure.TOO_MANY,
                    f"model '{self._name}' has {len(self._states)} sequences under way "
                    f"(max_sequences {self._options.max_sequences}) and begins no more; try again later",
                )
            state = State(position.id)
            self._states[position.id] = state
        elif state is None:
            raise invalid(
                f"model '{self._name}' {self._version} has no sequence '{position.id}' under way: it never began here, "
                f"has ended, or was idle for {self._options.idle_seconds:g} s; begin anew with sequence_start"
            )
        state.pending += 1
        if self._sweep is None:
            self._sweep_later()
        return state

    def leave(self, state: State) -> None:
        """A request has its answer; the state is forgotten if that was the last one of its sequence."""
        state.pending -= 1
        state.used = monotonic()
        if self._states.get(state.id) is not state:  # another sequence began under its id
            return
        if not state.pending and (state.ended or state.tensors is None):
            del self._states[state.id]
        else:
            self._states.move_to_end(state.id)

    def close(self) -> None:
        """Forget all of them."""
        self._states.clear()
        if self._sweep is not None:
            self._sweep.cancel()

    # -- private ---------------------------------------------------------------------------------------------------

    def _expire(self) -> None:
        longest_ago = monotonic() - self._options.idle_seconds
        while self._states:
            state = next(iter(self._states.values()))
            if state.used > longest_ago:
                return
            if state.pending:
                state.used = monotonic()
                self._states.move_to_end(state.id)
            else:
                del self._states[state.id]

    def _sweep_later(self) -> None:
        self._sweep = asyncio.get_running_loop().call_later(self._options.idle_seconds, self._sweep_now)

    def _sweep_now(self) -> None:
        self._sweep = None
        self._expire()
        if self._states:
            self._sweep_later()
