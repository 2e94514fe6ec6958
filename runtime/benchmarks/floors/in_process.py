# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""The floor of computing: the engine alone, in a process of its own, one run after the other.

Prints one line of JSON: ``p50_us``, ``p95_us``, ``p99_us`` and ``per_second``. With ``--wait`` it says "ready" first
and begins when it reads a line, so that several processes can begin together.
"""

import argparse
import json
import sys
from pathlib import Path
from time import perf_counter

import numpy as np
import onnxruntime

WARM_UP_RUNS = 20


def main() -> None:
    """Measure for some seconds."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, required=True, help="the ONNX file")
    parser.add_argument("--case", type=Path, required=True, help="the file with its input")
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--wait", action="store_true")
    arguments = parser.parse_args()
    with np.load(arguments.case) as arrays:
        inputs = {str(arrays["input_name"]): arrays["input"]}
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(arguments.model), options, providers=["CPUExecutionProvider"])
    for _ in range(WARM_UP_RUNS):
        session.run(None, inputs)
    if arguments.wait:
        print("ready", flush=True)
        sys.stdin.readline()
    durations = []
    started = finished = perf_counter()
    end = started + arguments.seconds
    while finished < end:
        before = finished
        session.run(None, inputs)
        finished = perf_counter()
        durations.append(finished - before)
    p50, p95, p99 = (float(value) * 1e6 for value in np.percentile(durations, (50, 95, 99)))
    per_second = len(durations) / (finished - started)
    print(json.dumps({"p50_us": p50, "p95_us": p95, "p99_us": p99, "per_second": per_second}), flush=True)


if __name__ == "__main__":
    main()
