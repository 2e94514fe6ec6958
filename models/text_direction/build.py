# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Take PaddleOCR's classifier of text directions from the Python package rapidocr and write it as a model directory.

The network is copied byte for byte. Golden cases and labelled examples are lines of text, drawn with Pillow's own
font, upright and upside down.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime
from PIL import Image, ImageDraw, ImageFont

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from golden_cases import GoldenCase, output_directory, write_golden_cases

PACKAGE = "rapidocr"
MODEL_FILE = "models/ch_ppocr_mobile_v2.0_cls_mobile.onnx"
LICENCE = "Apache-2.0"
LABELS = ["0", "180"]
INPUT, OUTPUT = "x", "save_infer_model/scale_0.tmp_1"
HEIGHT, WIDTH = 48, 192
"""Of a line: narrower ones have grey behind them, longer ones are pressed together, as PaddleOCR does."""
DECIMALS = 2
"""Of a pixel, -1 to 1: the 256 steps of an image are finer than what the model tells apart."""

GOLDEN_LINES = ("Keep this side up", "Fragile: handle with care", "Net weight 12.5 kg", "Emergency exit")
LINES = (
    "Batch 0417-B", "Serial 88-1203", "Pump station 7", "Best before 03/2027", "Made in Osaka", "Invoice No. 20391",
    "Platform 9", "High voltage", "No smoking area", "Open here", "Inspected by QA", "Line speed 40 m/min",
    "Temperature 21 C", "Do not stack", "Spare part 4711", "Quiet rivers carry heavy stones", "lot 7f", "W 3.1 x 4",
    "Oil, SAE 30", "nose", "SWIMS", "pod 96", "Keep frozen", "Torque 45 Nm", "Valve closed", "Hall B, gate 2",
    "0815", "Reuse or recycle", "Store below 8 C", "Tare 2.4 t",
)  # fmt: skip
#: Size of the font in pixels, colour of the text, colour of the paper.
STYLES = (
    (20, (0, 0, 0), (255, 255, 255)),
    (32, (240, 240, 235), (30, 60, 90)),
    (28, (60, 60, 60), (200, 200, 190)),
    (14, (150, 30, 30), (235, 225, 200)),
)


def main() -> None:
    """Write model.onnx, labels.txt, golden/, examples.npz and LICENSE; print a sentence and a line of JSON."""
    output = output_directory("Write the text direction model of the Python package rapidocr, with labelled examples.")
    package = importlib.metadata.distribution(PACKAGE)
    licence = licence_text(package)
    model = Path(str(package.locate_file(f"{PACKAGE}/{MODEL_FILE}"))).read_bytes()

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # the expected outputs must not depend on the number of cores
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    cases = []
    for number, text in enumerate(GOLDEN_LINES):
        for turned, label in enumerate(LABELS):
            image = line(text, STYLES[number % len(STYLES)], turned=bool(turned))[np.newaxis]
            cases.append(
                GoldenCase(
                    name=f"line_{number}_{label}",
                    description=f"The line {text!r}, turned by {label} degrees",
                    inputs={INPUT: image},
                    outputs={OUTPUT: session.run([OUTPUT], {INPUT: image})[0]},
                    label=label,
                )
            )
    images, labels = examples(LINES)
    answers = np.concatenate([session.run([OUTPUT], {INPUT: image[np.newaxis]})[0] for image in images])
    accuracy = float(np.mean(answers.argmax(axis=1) == labels))

    write_golden_cases(output, cases, LABELS)
    (output / "model.onnx").write_bytes(model)
    np.savez_compressed(output / "examples.npz", labels=labels, **{INPUT: images})
    (output / "LICENSE").write_text(licence, encoding="utf-8")
    print(f"text_direction: {accuracy:.1%} of {len(labels)} drawn lines right".replace("%", " %"))
    print(json.dumps({"accuracy": accuracy, "cases": len(cases), "examples": len(labels), "bytes": len(model)}))


def examples(texts: Sequence[str]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Return each line in each style and both directions, [n, 3, HEIGHT, WIDTH], and the index of its label, [n]."""
    drawn = [(line(text, style, turned=bool(turned)), turned)
             for text in texts for style in STYLES for turned in range(len(LABELS))]  # fmt: skip
    return np.stack([image for image, _turned in drawn]), np.array([turned for _image, turned in drawn])


def line(
    text: str, style: tuple[int, tuple[int, int, int], tuple[int, int, int]], *, turned: bool
) -> npt.NDArray[np.float32]:
    """Return a line of text as the network reads it: [3, HEIGHT, WIDTH], blue first, -1 to 1."""
    size, ink, paper = style
    font = ImageFont.load_default(size)
    left, top, right, bottom = (int(value) for value in font.getbbox(text))
    picture = Image.new("RGB", (right - left + 12, bottom - top + 10), paper)
    ImageDraw.Draw(picture).text((6 - left, 5 - top), text, font=font, fill=ink)
    if turned:
        picture = picture.transpose(Image.Transpose.ROTATE_180)
    width = min(WIDTH, -(-HEIGHT * picture.width // picture.height))
    pixels = np.asarray(picture.resize((width, HEIGHT), Image.Resampling.BILINEAR), dtype=np.float32)[:, :, ::-1]
    image = np.zeros((3, HEIGHT, WIDTH), dtype=np.float32)
    image[:, :, :width] = np.round(pixels.transpose(2, 0, 1) / 127.5 - 1, DECIMALS)
    return image


def licence_text(package: importlib.metadata.Distribution) -> str:
    """Return whose model this is and the full licence. Ends the program if the package's licence has changed."""
    seen = package.metadata["License-Expression"]
    if seen != LICENCE:
        raise SystemExit(f"text_direction: {PACKAGE} {package.version} has licence {seen!r}, not {LICENCE!r}")
    notice = (
        f"model.onnx is {Path(MODEL_FILE).name} of the Python package {PACKAGE} {package.version}, unchanged;\n"
        "variants were made from it. Converted from an official PaddleOCR model by RapidOCR.\n"
        "https://github.com/PaddlePaddle/PaddleOCR, https://github.com/RapidAI/RapidOCR\n"
        f"The weights are copyright Baidu and the PaddleOCR authors. Licensed under {LICENCE}:\n"
    )
    text = package.read_text("licenses/LICENSE")
    if not text:
        raise SystemExit(f"text_direction: {PACKAGE} {package.version} has no licenses/LICENSE")
    return notice + text


if __name__ == "__main__":
    main()
