# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A photo of a handwritten digit, as a camera sends it, becomes what the model `digits` reads.

In: `file` UINT8 [n], a JPEG or PNG file. Out: `image` FP32 [1, 64], 8 x 8 pixels, 0 (paper) to 16 (ink).
"""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

SIDE = 8
INK = 16.0
MOST_PIXELS = 4096 * 4096


def infer(inputs: dict[str, npt.NDArray[np.uint8]]) -> dict[str, npt.NDArray[np.float32]]:
    """Return the photo as grey ink on paper, averaged to 8 x 8 pixels. Raises ValueError if it is no photo."""
    try:
        # The header alone is read first: a small file may claim to be a huge picture.
        with Image.open(io.BytesIO(inputs["file"].tobytes()), formats=["JPEG", "PNG"]) as photo:
            if photo.width * photo.height > MOST_PIXELS:
                raise ValueError(f"{photo.width} x {photo.height} pixels are more than {MOST_PIXELS}")
            grey = np.asarray(photo.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX), dtype=np.float32)
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError("the bytes are no complete JPEG or PNG file") from error
    return {"image": ((255.0 - grey) * (INK / 255.0)).reshape(1, SIDE * SIDE).astype(np.float32)}
