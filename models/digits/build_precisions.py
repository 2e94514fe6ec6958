# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Train a wider network for handwritten digits and write it in two precisions: one model directory, two variants.

model.onnx has its weights in single precision. model.int8.onnx has them in 8 bits, a quarter of the bytes to move and
to keep, for boards. Both compute in single precision, so that every processor gives the same answers; both answer the
same golden cases.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from golden_cases import output_directory, write_golden_cases

from build import LABELS, LICENCE, as_onnx, choose_cases, data, train

UNITS = 512
LEARNING_RATE = 0.003
TOLERANCE: dict[str, float] = {"absolute": 0.02, "relative": 0.0}
"""In probability: more than 8 bits move any held-out image, and a case leads by 0.5 or more."""
LEAST_ACCURACY = 0.975
"""On the held-out images, of either precision; below, nothing is written."""


def main() -> None:
    """Write model.onnx, model.int8.onnx, labels.txt, golden/ and LICENSE; print a sentence and a line of JSON."""
    output = output_directory("Train the wide handwritten digits model and write it in single precision and 8 bits.")

    pixels, digits, training, held_out = data()
    classifier = train(pixels[training], digits[training], UNITS, LEARNING_RATE)
    single = as_onnx(classifier).SerializeToString(deterministic=True)
    models = {"model.onnx": single, "model.int8.onnx": in_eight_bits(single)}

    images = pixels[held_out].astype(np.float32)
    expected = classifier.predict_proba(pixels[held_out]).astype(np.float32)
    accuracy = {}
    for name, model in models.items():
        session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        answered, probabilities = session.run(["label", "probabilities"], {"image": images})
        accuracy[name] = float(np.mean(answered == digits[held_out]))
        error = float(np.abs(probabilities - expected).max())
        if accuracy[name] < LEAST_ACCURACY or error > TOLERANCE["absolute"]:
            raise SystemExit(f"digits: {name}: accuracy {accuracy[name]:.3f}, error {error:.4f}; nothing was written")

    cases = choose_cases(held_out, images, digits[held_out], expected)
    write_golden_cases(output, cases, LABELS, TOLERANCE)
    for name, model in models.items():
        (output / name).write_bytes(model)
    (output / "LICENSE").write_text(LICENCE, encoding="utf-8")

    print(
        f"digits: held-out accuracy {accuracy['model.onnx']:.1%} in single precision ({len(single)} bytes), "
        f"{accuracy['model.int8.onnx']:.1%} in 8 bits ({len(models['model.int8.onnx'])} bytes)".replace("%", " %")
    )
    print(json.dumps({"accuracy": accuracy, "cases": len(cases), "bytes": {n: len(m) for n, m in models.items()}}))


def in_eight_bits(model: bytes) -> bytes:
    """Return an ONNX model with each weight matrix in 8 bits, with one scale for each column."""
    quantized = onnx.load_from_string(model)
    graph = quantized.graph
    matrices = {name for node in graph.node if node.op_type == "MatMul" for name in node.input}
    for tensor in [tensor for tensor in graph.initializer if tensor.name in matrices]:
        weights = numpy_helper.to_array(tensor)  # float32 [rows, columns]
        scale = (np.abs(weights).max(axis=0) / 127).astype(np.float32)
        scale[scale == 0] = 1  # a unit that training switched off
        eight_bits = np.round(weights / scale).astype(np.int8)
        graph.initializer.remove(tensor)
        graph.initializer.append(numpy_helper.from_array(eight_bits, f"{tensor.name}_int8"))
        graph.initializer.append(numpy_helper.from_array(scale, f"{tensor.name}_scale"))
        inputs = [f"{tensor.name}_int8", f"{tensor.name}_scale"]
        graph.node.insert(0, helper.make_node("DequantizeLinear", inputs, [tensor.name], axis=1))
    onnx.checker.check_model(quantized, full_check=True)
    data: bytes = quantized.SerializeToString(deterministic=True)
    return data


if __name__ == "__main__":
    main()
