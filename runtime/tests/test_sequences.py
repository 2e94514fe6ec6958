# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Models with a state per sequence: order, bounds, expiry, failures, and what a stream must come to."""

import asyncio
import json
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from edgeml_runtime.engine import served_model
from edgeml_runtime.engine.engine import Engine
from edgeml_runtime.engine.sequences import Sequences
from edgeml_runtime.errors import Failure, StartError
from edgeml_runtime.inference import InferenceRequest, SequencePosition
from edgeml_runtime.metrics import Metrics
from edgeml_runtime.serving import SequenceOptions, SequenceState
from engines import configuration, failure_of, features, recurrent, run, running_sum, started, step

NAN = float("nan")


@pytest.fixture(params=["event loop", "threads"])
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where the model computes."""
    monkeypatch.setattr(served_model, "INLINE_SECONDS", 10.0 if request.param == "event loop" else 0.0)
    return str(request.param)


def test_the_states_are_no_part_of_the_signature(tmp_path: Path) -> None:
    async def test() -> None:
        model = (await started(running_sum(tmp_path))).model("running_sum", "")
        assert (list(model.inputs), list(model.outputs)) == (["x"], ["y"])

    run(test)


@pytest.mark.parametrize("lengths", [[1] * 30, [30], [7, 1, 12, 2, 8]])
def test_a_stream_in_parts_is_computed_as_the_whole(tmp_path: Path, lengths: list[int], place: str) -> None:
    async def test() -> None:
        entry = recurrent(tmp_path)
        model = (await started(entry)).model("recurrent", "")
        stream = np.random.default_rng(3).standard_normal((30, 1, 3)).astype(np.float32)
        session = onnxruntime.InferenceSession(Path(entry["path"]) / "model.onnx", providers=["CPUExecutionProvider"])
        (whole,) = session.run(["y"], {"x": stream, "h": np.zeros((1, 1, 4), np.float32)})
        parts = []
        ends = np.cumsum(lengths)
        for begin, end in zip(ends - lengths, ends, strict=True):
            position = SequencePosition("a", start=begin == 0, end=end == 30)
            request = InferenceRequest("", {"x": stream[begin:end]}, ["y"], sequence=position)
            parts += await model.infer(request)
        np.testing.assert_allclose(np.concatenate(parts), whole, rtol=1e-6, atol=1e-7)

    run(test)


@pytest.fixture(scope="session")
def speech_detector(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """silero-vad on 16 kHz audio: ``input`` [frames, 576] to ``speech_probs`` [frames], states h and c of an LSTM."""
    directory = tmp_path_factory.mktemp("speech_detector")
    requirements = Path(__file__).parent / "support" / "silero-vad.txt"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes", "-r", requirements]
    subprocess.run([*command, "--dest", directory], check=True)
    (wheel,) = directory.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        content = archive.read("silero_vad/data/silero_vad_16k_sequence.onnx")
    (directory / "model.onnx").write_bytes(content)
    description = {"name": "speech_detector", "version": "6.2.3", "platform": "onnxruntime_onnx", "file": "model.onnx"}
    (directory / "model.json").write_text(json.dumps(description))
    states = [{"input": "h", "output": "hn"}, {"input": "c", "output": "cn"}]
    (directory / "serving.json").write_text(json.dumps({"sequence": {"states": states}}))
    return {"name": "speech_detector", "version": "6.2.3", "path": str(directory)}


def test_a_real_recurrent_network_hears_the_same_in_a_stream(speech_detector: dict[str, Any], place: str) -> None:
    """Two microphones at once, frame by frame, against the whole recording in one run of the bare engine."""

    async def test() -> None:
        model = (await started(speech_detector)).model("speech_detector", "")
        assert (list(model.inputs), list(model.outputs)) == (["input"], ["speech_probs"])
        random = np.random.default_rng(5)
        seconds = np.arange(60 * 576) / 16000
        voice = sum(np.sin(2 * np.pi * 140 * tone * seconds) / tone for tone in range(1, 12))
        voiced = voice * (np.sin(2 * np.pi * 2 * seconds) > 0) + 0.05 * random.standard_normal(seconds.size)
        recordings = {
            "voice": (0.1 * voiced).reshape(60, 576).astype(np.float32),
            "noise": (0.1 * random.standard_normal((60, 576))).astype(np.float32),
        }

        async def listen(id: str) -> list[float]:
            heard: list[float] = []
            for number, frame in enumerate(recordings[id]):
                request = InferenceRequest("", {"input": frame[None]}, ["speech_probs"])
                request.sequence = SequencePosition(id, start=number == 0, end=number == 59)
                (probabilities,) = await model.infer(request)
                heard += probabilities.tolist()
            return heard

        file = Path(speech_detector["path"]) / "model.onnx"
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        silence = np.zeros((1, 1, 128), np.float32)
        for id, heard in zip(recordings, await asyncio.gather(*map(listen, recordings)), strict=True):
            (whole,) = session.run(["speech_probs"], {"input": recordings[id], "h": silence, "c": silence})
            assert np.ptp(whole) > 0.01
            np.testing.assert_allclose(heard, whole, rtol=1e-3, atol=1e-5)
            # Without the state it would hear something else.
            (frame,) = session.run(["speech_probs"], {"input": recordings[id][30:31], "h": silence, "c": silence})
            assert not np.allclose(frame, whole[30], rtol=1e-3, atol=1e-5)

    run(test)


def test_requests_of_a_sequence_are_computed_in_the_order_of_arrival(tmp_path: Path, place: str) -> None:
    async def test() -> None:
        entry = running_sum(tmp_path, slow=20)
        model = (await started(entry | {"options": {"engine": {"parallel": 4}}})).model("running_sum", "")
        ids = [f"sequence {number}" for number in range(5)]
        answers = {id: [asyncio.create_task(model.infer(step([[1, 10]], id, start=True)))] for id in ids}
        for _ in range(40):
            for id in ids:
                answers[id].append(asyncio.create_task(model.infer(step([[1, 10]], id))))
        for id in ids:
            sums = [(await answer)[0].tolist() for answer in answers[id]]
            assert sums == [[[number, 10.0 * number]] for number in range(1, 42)]

    run(test)


def test_different_sequences_are_computed_at_the_same_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served_model, "INLINE_SECONDS", 0.0)

    async def test() -> None:
        entry = running_sum(tmp_path) | {"options": {"engine": {"parallel": 2}}}
        model = (await started(entry)).model("running_sum", "")
        meeting = threading.Barrier(2)
        assert model._sequence_model is not None
        inner = model._sequence_model._model
        compute = inner.run

        def meet(*arguments: Any) -> Any:
            meeting.wait(240)
            return compute(*arguments)

        monkeypatch.setattr(inner, "run", meet)
        await asyncio.gather(*(model.infer(step([[1, 1]], id, start=True)) for id in "ab"))

    run(test)


def test_a_failed_run_leaves_the_state_as_it_was(tmp_path: Path, place: str) -> None:
    async def test() -> None:
        model = (await started(running_sum(tmp_path))).model("running_sum", "")
        await model.infer(step([[1, 1]], start=True))
        assert (await failure_of(model.infer(step([[NAN, 1]])))).failure in (Failure.INTERNAL, Failure.INVALID)
        assert (await failure_of(model.infer(step([[NAN, 1]], end=True)))).failure in (
            Failure.INTERNAL,
            Failure.INVALID,
        )
        assert (await model.infer(step([[1, 1]], end=True)))[0].tolist() == [[2.0, 2.0]]

    run(test)


def test_a_failed_start_begins_nothing(tmp_path: Path, place: str) -> None:
    async def test() -> None:
        model = (await started(running_sum(tmp_path))).model("running_sum", "")
        answers = [
            asyncio.create_task(model.infer(request))
            for request in (step([[NAN, 1]], start=True), step([[1, 1]]), step([[1, 1]]))
        ]
        await failure_of(answers[0])
        for answer in answers[1:]:
            error = await failure_of(answer)
            assert error.failure is Failure.INVALID
            assert "begin anew with sequence_start" in str(error)
        assert len(model._sequences or ()) == 0

    run(test)


def test_a_request_that_is_too_late_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client was told that it failed, so the state must not have moved, even when the run came to its end."""
    monkeypatch.setattr(served_model, "INLINE_SECONDS", 0.0)

    async def test() -> None:
        model = (await started(running_sum(tmp_path))).model("running_sum", "")
        await model.infer(step([[1, 1]], start=True))
        assert model._sequence_model is not None
        inner = model._sequence_model._model
        compute = inner.run

        def late(inputs: Any, outputs: Any, _cancellation: Any) -> Any:
            time.sleep(0.1)
            return compute(inputs, outputs)

        monkeypatch.setattr(inner, "run", late)
        request = step([[1, 1]])
        request.timeout = 0.02
        assert (await failure_of(model.infer(request))).failure is Failure.DEADLINE
        assert (await model.infer(step([[1, 1]])))[0].tolist() == [[2.0, 2.0]]

    run(test)


def test_an_end_forgets_and_a_start_begins_anew(tmp_path: Path, place: str) -> None:
    async def test() -> None:
        model = (await started(running_sum(tmp_path))).model("running_sum", "")
        for _ in range(2):  # a start under an id that is under way
            await model.infer(step([[1, 1]], start=True))
            assert (await model.infer(step([[1, 1]])))[0].tolist() == [[2.0, 2.0]]
        await model.infer(step([[1, 1]], end=True))
        error = await failure_of(model.infer(step([[1, 1]])))
        assert error.failure is Failure.INVALID
        assert "has no sequence 'a' under way" in str(error)
        assert "begin anew with sequence_start" in str(error)
        assert (await model.infer(step([[5, 5]], start=True, end=True)))[0].tolist() == [[5.0, 5.0]]
        assert len(model._sequences or ()) == 0

    run(test)


@pytest.mark.parametrize("sequence", [None, SequencePosition("", True, False)])
def test_an_id_is_required(tmp_path: Path, sequence: SequencePosition | None) -> None:
    async def test() -> None:
        model = (await started(running_sum(tmp_path))).model("running_sum", "")
        request = features([[1, 1]])
        request.sequence = sequence
        error = await failure_of(model.infer(request))
        assert error.failure is Failure.INVALID
        assert "parameter sequence_id is required" in str(error)

    run(test)


def test_so_many_sequences_and_no_more(tmp_path: Path, place: str) -> None:
    async def test() -> None:
        model = (await started(running_sum(tmp_path, max_sequences=3))).model("running_sum", "")
        for id in "abc":
            await model.infer(step([[1, 1]], id, start=True))
        error = await failure_of(model.infer(step([[1, 1]], "d", start=True)))
        assert error.failure is Failure.TOO_MANY
        assert "has 3 sequences under way (max_sequences 3)" in str(error)
        await model.infer(step([[1, 1]], "a", start=True))  # anew: no additional one
        await model.infer(step([[1, 1]], "b", end=True))
        await model.infer(step([[1, 1]], "d", start=True))

    run(test)


def test_an_idle_sequence_expires_without_any_request(tmp_path: Path) -> None:
    async def test() -> None:
        model = (await started(running_sum(tmp_path, idle_seconds=0.05))).model("running_sum", "")
        await model.infer(step([[1, 1]], "a", start=True))
        while len(model._sequences or ()):
            await asyncio.sleep(0.01)
        assert "was idle for 0.05 s" in str(await failure_of(model.infer(step([[1, 1]], "a"))))

    run(test)


def sequences(idle_seconds: float, max_sequences: int = 10) -> Sequences:
    options = SequenceOptions((SequenceState("i", "o"),), max_sequences, idle_seconds)
    return Sequences("model", "1.0.0", options)


def test_the_one_that_was_used_last_expires_last(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        now = 0.0
        monkeypatch.setattr("edgeml_runtime.engine.sequences.monotonic", lambda: now)
        table = sequences(10)
        states = {}
        for id in "abc":
            states[id] = table.enter(SequencePosition(id, True, False))
            states[id].tensors = []
            table.leave(states[id])
            now += 1
        table.leave(table.enter(SequencePosition("a", False, False)))  # at 3
        waiting = table.enter(SequencePosition("b", False, False))  # at 3, and not left
        now = 12.5  # c is older than 10 s, a is not
        assert (await failure_of(entered(table, "c"))).failure is Failure.INVALID
        await entered(table, "a")
        now = 20  # b still waits: what is under way does not expire
        await entered(table, "a")
        await entered(table, "b")
        table.leave(waiting)
        now = 40
        for id in "abc":
            assert (await failure_of(entered(table, id))).failure is Failure.INVALID
        assert len(table) == 0

    run(test)


async def entered(table: Sequences, id: str) -> None:
    table.leave(table.enter(SequencePosition(id, False, False)))


def test_a_version_switch_ends_the_sequences(tmp_path: Path) -> None:
    async def test() -> None:
        first = running_sum(tmp_path)
        models = configuration(first).models
        engine = Engine(configuration(first), Metrics(), lambda: models)
        await engine.start()
        await engine.model("running_sum", "").infer(step([[1, 1]], start=True))
        await engine.reload()  # nothing has changed: it goes on
        assert (await engine.model("running_sum", "").infer(step([[1, 1]])))[0].tolist() == [[2.0, 2.0]]
        models = configuration(running_sum(tmp_path, "2.0.0")).models
        await engine.reload()
        error = await failure_of(engine.model("running_sum", "").infer(step([[1, 1]])))
        assert error.failure is Failure.INVALID
        assert "2.0.0 has no sequence 'a' under way" in str(error)

    run(test)


def test_a_shape_for_dimensions_of_any_size(tmp_path: Path) -> None:
    async def test() -> None:
        entry = recurrent(tmp_path, shape=[1, 1, 4])
        model = (await started(entry)).model("recurrent", "")
        request = InferenceRequest("", {"x": np.ones((2, 1, 3), np.float32)}, ["y"])
        request.sequence = SequencePosition("a", True, False)
        assert (await model.infer(request))[0].shape == (2, 1, 1, 4)

    run(test)


def test_code_that_uses_its_arrays_again_does_not_mix_sequences(tmp_path: Path) -> None:
    async def test() -> None:
        (tmp_path / "model.py").write_text(
            "import numpy\n"
            "total = numpy.zeros(1, numpy.float32)\n"
            "def infer(inputs):\n"
            "    total[:] = inputs['x'] + inputs['total']\n"
            "    return {'y': total.copy(), 'total_out': total}\n"
        )
        description = {"name": "code", "version": "1.0.0", "platform": "python", "file": "model.py"}
        (tmp_path / "model.json").write_text(json.dumps(description))
        tensors = {
            key: [{"name": name, "datatype": "FP32", "shape": [1]} for name in names]
            for key, names in (("inputs", ("x", "total")), ("outputs", ("y", "total_out")))
        }
        serving = {**tensors, "sequence": {"states": [{"input": "total", "output": "total_out"}]}}
        (tmp_path / "serving.json").write_text(json.dumps(serving))
        model = (await started({"name": "code", "version": "1.0.0", "path": str(tmp_path)})).model("code", "")

        async def add(id: str, value: float, start: bool = False) -> float:
            inputs = {"x": np.array([value], np.float32)}
            request = InferenceRequest("", inputs, ["y"], sequence=SequencePosition(id, start, False))
            return float((await model.infer(request))[0][0])

        assert [await add("a", 1, start=True), await add("b", 10, start=True)] == [1, 10]
        assert [await add("a", 1), await add("b", 10), await add("a", 1)] == [2, 20, 3]

    run(test)


def states_of(*states: dict[str, Any]) -> Callable[[Path], None]:
    def change(directory: Path) -> None:
        (directory / "serving.json").write_text(json.dumps({"sequence": {"states": states}}))

    return change


@pytest.mark.parametrize(
    ("states", "message"),
    [
        ([{"input": "h", "output": "hidden"}], "the model has no output 'hidden', but y, h_out"),
        ([{"input": "hidden", "output": "h_out"}], "the model has no input 'hidden', but x, h"),
        ([{"input": "h", "output": "h_out"}] * 2, "input 'h' is named more than once"),
        ([{"input": "h", "output": "h_out", "shape": [1, 1, 5]}], r"shape \[1, 1, 5\], the model takes \[1, -1, 4\]"),
        ([{"input": "h", "output": "y"}], r"'y' has shape \[1, 1, 1, 4\]; it must keep its shape \[1, 1, 4\]"),
    ],
)
def test_states_that_do_not_fit_the_model_are_refused(
    tmp_path: Path, states: list[dict[str, Any]], message: str
) -> None:
    async def test() -> None:
        entry = recurrent(tmp_path)
        states_of(*states)(Path(entry["path"]))
        with pytest.raises(StartError, match=message):
            await started(entry)

    run(test)
