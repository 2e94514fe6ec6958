# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""What the perceptron answers with an execution provider: ``answer_with.py FILE PROVIDER``, in an environment of it."""

import json
import sys
from pathlib import Path

import numpy as np
from edgeml_runtime.engine.onnx_model import OnnxModel
from edgeml_runtime.serving import CPU, EngineOptions

ROWS = 16


def main(file: str, provider: str) -> None:
    """Write one line of JSON: ``provider``, and the answers to ROWS rows, flat."""
    providers = tuple(dict.fromkeys((provider, CPU)))
    model = OnnxModel(Path(file), EngineOptions(providers=providers, provider_fallback=False), None)
    features = np.random.default_rng(0).normal(size=(ROWS, 4)).astype(np.float32)
    scores, best = model.run({"features": features}, ["scores", "best"])
    found = {"provider": model.provider, "scores": scores.ravel().tolist(), "best": best.ravel().tolist()}
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
