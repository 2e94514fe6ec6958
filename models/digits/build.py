# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Train a classifier of handwritten digits and write it as a model directory.

Data: scikit-learn's digits, 1797 grey images of 8 x 8 pixels. 360 of them, every digit in proportion, are held out;
accuracy and golden cases come from these alone.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from skl2onnx import convert_sklearn
from skl2onnx.common.data_types import FloatTensorType, Int64TensorType
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from threadpoolctl import threadpool_limits

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from golden_cases import TOLERANCE, GoldenCase, answers_clearly, output_directory, write_golden_cases

LABELS = [str(digit) for digit in range(10)]
PIXEL_MAXIMUM = 16.0
HELD_OUT_IMAGES = 360
EPOCHS = 40
WEIGHT_STEPS = 1024
"""Weights are rounded to 1/1024: processors differ in the last digits of a training, the model then does not."""
OPSET = 21
"""Of ONNX 1.16: ONNX Runtime 1.18 and later, so 1.24.4 and other servers of the protocol run it."""
LICENCE = """\
The images in golden/, and the data that model.onnx was trained on:
E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository,
https://doi.org/10.24432/C50P49, licensed under CC BY 4.0 (https://creativecommons.org/licenses/by/4.0/).
Taken from the copy in scikit-learn; the images are unchanged.
"""


def main() -> None:
    """Write model.onnx, labels.txt, golden/ and LICENSE; print a sentence and a line of JSON."""
    output = output_directory("Train the handwritten digits model, measure it on held-out images and write it.")

    pixels, digits, training, held_out = data()
    classifier = train(pixels[training], digits[training])
    model = as_onnx(classifier).SerializeToString(deterministic=True)

    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    images = pixels[held_out].astype(np.float32)
    answered, probabilities = session.run(["label", "probabilities"], {"image": images})
    # The reference is scikit-learn in double precision: independent of the engine, equal on every processor.
    expected = classifier.predict_proba(pixels[held_out])
    if not np.allclose(probabilities, expected, rtol=TOLERANCE["relative"], atol=TOLERANCE["absolute"]):
        raise SystemExit("digits: the exported model does not answer as scikit-learn does; nothing was written")
    accuracy = float(np.mean(answered == digits[held_out]))

    cases = choose_cases(held_out, images, digits[held_out], expected.astype(np.float32))
    write_golden_cases(output, cases, LABELS)
    (output / "model.onnx").write_bytes(model)
    (output / "LICENSE").write_text(LICENCE, encoding="utf-8")

    print(f"digits: held-out accuracy {accuracy:.1%} on {len(held_out)} images it never saw".replace("%", " %"))
    print(json.dumps({"accuracy": accuracy, "cases": len(cases), "classes": len(LABELS), "bytes": len(model)}))


def data() -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return pixels 0..16 [1797, 64], digits [1797], and which images are for training and which are held out."""
    pixels, digits = load_digits(return_X_y=True)
    training, held_out = train_test_split(
        np.arange(len(digits)), test_size=HELD_OUT_IMAGES, stratify=digits, random_state=0
    )
    return pixels, digits, training, held_out


def train(
    pixels: npt.NDArray[np.float64], digits: npt.NDArray[np.int64], units: int = 64, learning_rate: float = 0.01
) -> MLPClassifier:
    """Return a trained network that takes pixels 0..16 as they are, shape [n, 64]; `units` is its hidden layer's size.

    Both defaults were chosen by five-fold cross-validation within the training images (97.8 %).
    """
    classifier = MLPClassifier(
        hidden_layer_sizes=(units,),
        learning_rate_init=learning_rate,
        max_iter=EPOCHS,
        n_iter_no_change=EPOCHS,
        random_state=0,
    )
    # One thread: the order of summation, and so the result, must not depend on the number of cores.
    with threadpool_limits(limits=1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a fixed number of epochs is meant
        classifier.fit(pixels / PIXEL_MAXIMUM, digits)
    classifier.coefs_ = [np.round(layer * WEIGHT_STEPS) / WEIGHT_STEPS for layer in classifier.coefs_]
    classifier.intercepts_ = [np.round(layer * WEIGHT_STEPS) / WEIGHT_STEPS for layer in classifier.intercepts_]
    # Scaling moves into the first layer; dividing by a power of two loses nothing.
    classifier.coefs_[0] /= PIXEL_MAXIMUM
    return classifier


def as_onnx(classifier: MLPClassifier) -> onnx.ModelProto:
    """Return the network as ONNX: `image` FP32 [-1, 64] in, `label` INT64 [-1], `probabilities` FP32 [-1, 10] out."""
    model: onnx.ModelProto = convert_sklearn(
        classifier,
        name="digits",
        initial_types=[("image", FloatTensorType([None, 64]))],
        final_types=[("label", Int64TensorType([None])), ("probabilities", FloatTensorType([None, 10]))],
        options={"zipmap": False},
        target_opset=OPSET,
    )
    documentation = {
        "image": "Grey image of 8 x 8 pixels, row by row from the top left; 0 is paper, 16 is ink.",
        "label": "The digit, 0 to 9.",
        "probabilities": "Probability of each digit, in the order of labels.txt.",
    }
    for tensor in [*model.graph.input, *model.graph.output]:
        tensor.doc_string = documentation[tensor.name]
        tensor.type.tensor_type.shape.dim[0].dim_param = "batch"
    # The converter writes them in no certain order, and the same training shall give the same bytes.
    opsets = sorted(model.opset_import, key=lambda opset: opset.domain)
    del model.opset_import[:]
    model.opset_import.extend(opsets)
    model.doc_string = "Handwritten digits: network of one hidden layer, trained on scikit-learn's digits."
    onnx.checker.check_model(model, full_check=True)
    return model


def choose_cases(
    indices: npt.NDArray[np.int64],
    images: npt.NDArray[np.float32],
    digits: npt.NDArray[np.int64],
    probabilities: npt.NDArray[np.float32],
) -> list[GoldenCase]:
    """Return for each digit the first held-out image that the model answers clearly and rightly.

    `images` [n, 64], `digits` [n] and `probabilities` [n, 10] belong to the images of the data set at `indices` [n].
    """
    cases = []
    for digit, label in enumerate(LABELS):
        for row in np.flatnonzero(digits == digit):
            case = GoldenCase(
                name=f"digit_{label}",
                description=f"A handwritten {label}: image {indices[row]} of scikit-learn's digits, held out from "
                "training; the first of its class that the model answers clearly and rightly",
                inputs={"image": images[row : row + 1]},
                outputs={
                    "label": digits[row : row + 1].astype(np.int64),
                    "probabilities": probabilities[row : row + 1],
                },
                label=label,
            )
            if answers_clearly(case, LABELS):
                cases.append(case)
                break
        else:
            raise SystemExit(f"digits: the model answers no held-out {label} clearly and rightly; nothing was written")
    return cases


if __name__ == "__main__":
    main()
