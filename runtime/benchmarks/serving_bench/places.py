# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Where things are: sources in the checkout, everything made below build/."""

from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parents[1]
ROOT = BENCHMARKS.parents[1]
RUNTIME_SOURCE = ROOT / "runtime" / "src"
ADAPTERS = BENCHMARKS / "adapters"

WORK = ROOT / "build" / "benchmarks"
ENVIRONMENTS = WORK / "environments"
MODELS = WORK / "models"
ECHO = WORK / "echo"
RUN = WORK / "run"
RESULTS = ROOT / "build" / "bench"
