# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Take the file type detector of the Python package magika and write it as a model directory.

The network is copied byte for byte from the package; the golden cases are small files of nine kinds, turned into
the network's input by the package itself.
"""

from __future__ import annotations

import importlib.metadata
import io
import json
import sys
from pathlib import Path
from typing import Any

import magika
import numpy as np
import onnxruntime
from magika.types import Seekable

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from golden_cases import GoldenCase, answers_clearly, output_directory, write_golden_cases
from sample_files import SAMPLE_FILES

MODEL_NAME = "standard_v3_3"
LICENCE = "Apache-2.0"


def main() -> None:
    """Write model.onnx, labels.txt, golden/ and LICENSE; print a sentence and a line of JSON."""
    output = output_directory("Write the file type model of the Python package magika, with golden cases.")

    source = Path(magika.__file__).parent / "models" / MODEL_NAME
    model = (source / "model.onnx").read_bytes()
    settings = json.loads((source / "config.min.json").read_text(encoding="utf-8"))
    labels: list[str] = settings["target_labels_space"]

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # the expected outputs must not depend on the number of cores
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    package = magika.Magika(model_dir=source)
    cases = [golden_case(name, content, settings, session) for name, content in SAMPLE_FILES.items()]
    right = sum(answers_clearly(case, labels) for case in cases)
    for case in cases:
        answer = package.identify_bytes(SAMPLE_FILES[case.name]).output.label
        if answer != case.label:
            raise SystemExit(f"file_type: magika itself takes sample {case.label} for {answer}; nothing was written")

    licence = licence_text()
    write_golden_cases(output, cases, labels)
    (output / "model.onnx").write_bytes(model)
    (output / "LICENSE").write_text(licence, encoding="utf-8")

    version = importlib.metadata.version("magika")
    count = len(cases)
    print(f"file_type: {MODEL_NAME} of magika {version}, {len(labels)} types; {right} of {count} sample files right")
    print(json.dumps({"accuracy": right / count, "cases": count, "classes": len(labels), "bytes": len(model)}))


def golden_case(
    kind: str, content: bytes, settings: dict[str, Any], session: onnxruntime.InferenceSession
) -> GoldenCase:
    """Return the case of one file: input `bytes` INT32 [1, 2048], output `target_label` FP32 [1, number of types].

    The input is the file's first and last 1024 bytes without surrounding white space; 256 stands for no byte.
    """
    features = magika.Magika._extract_features_from_seekable(
        Seekable(io.BytesIO(content)),
        **{
            name: settings[name]
            for name in ("beg_size", "mid_size", "end_size", "padding_token", "block_size", "use_inputs_at_offsets")
        },
    )
    inputs = {"bytes": np.array([features.beg + features.mid + features.end], dtype=np.int32)}
    outputs = {"target_label": session.run(["target_label"], inputs)[0]}
    return GoldenCase(
        name=kind,
        description=f"A file of type {kind}, {len(content)} bytes; input as magika extracts it",
        inputs=inputs,
        outputs=outputs,
        label=kind,
    )


def licence_text() -> str:
    """Return whose model this is and the full licence. Ends the program if the package's licence has changed."""
    about = importlib.metadata.metadata("magika")
    if about["License"] != LICENCE:
        raise SystemExit(f"file_type: magika {about['Version']} has licence {about['License']!r}, not {LICENCE!r}")
    notice = (
        f"model.onnx is the model {MODEL_NAME} of magika {about['Version']}, unchanged.\n"
        "https://github.com/google/magika\n"
        f"Copyright Google LLC. Licensed under {LICENCE}:\n"
    )
    return notice + (Path(__file__).parent / "APACHE-2.0.txt").read_text(encoding="utf-8")


if __name__ == "__main__":
    main()
