# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A small catalogue: two models and two runtimes, for the tests of placement."""

from __future__ import annotations

from typing import Any

DIGITS: dict[str, Any] = {
    "name": "digits",
    "version": "1.0.0",
    "platform": "onnxruntime_onnx",
    "source": "models/digits",
    "variants": [
        {"name": "int8", "file": "int8.onnx", "when": {"architecture": "arm64", "max_memory_mb": 2048}},
        {"name": "fp32", "file": "fp32.onnx"},
    ],
    "requires": {"memory_mb": 300, "packages": ["libgomp1"]},
    "slo": {"p95_ms": 25, "protocol": "grpc"},
}
PLAIN: dict[str, Any] = {"name": "sound", "version": "2.0.0", "platform": "python", "source": "models/sound"}
RUNTIMES: list[dict[str, Any]] = [
    {"name": "runtime", "recipe": "image.yml"},
    {"name": "vision", "extends": "runtime", "ports": {"rest": 8010, "grpc": 8011, "metrics": 8012}},
]
