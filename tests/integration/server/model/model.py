# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Handwritten digits by the nearest mean image, as a custom runtime of MLServer."""

import json
from pathlib import Path

import numpy as np
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class NearestMean(MLModel):  # type: ignore[misc]
    """Answers label [n, 1] and scores [n, 10], the negative distances, to images [n, 64] of 0..16."""

    async def load(self) -> bool:
        """Read the ten mean images beside this file."""
        self._means = np.asarray(json.loads(Path(__file__).with_name("means.json").read_text()), np.float32)
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Answer one request."""
        images = NumpyCodec.decode_input(payload.inputs[0])
        distances = np.linalg.norm(images[:, None, :] - self._means[None], axis=2).astype(np.float32)
        outputs = [
            NumpyCodec.encode_output("label", distances.argmin(axis=1, keepdims=True).astype(np.int64)),
            NumpyCodec.encode_output("scores", -distances),
        ]
        return InferenceResponse(model_name=self.name, model_version=self.version, outputs=outputs)
