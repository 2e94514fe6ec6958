#!/usr/bin/python
# Copyright (c) edgeml.fleet contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ansible module: measure the latency of served models."""

from __future__ import annotations

DOCUMENTATION = r"""
module: inference_latency
short_description: Measure how long served models take to answer, and hold them to an objective
version_added: 0.1.0
author: edgeml.fleet contributors (@edgeml)
description:
  - Sends requests to models on any server of the Open Inference Protocol v2, over REST or gRPC, one after another on
    one connection, and returns mean and percentiles of the time from the first byte written to the last byte read.
  - All models are measured, also after one has missed its objective; then the module fails with the first failure.
options:
  samples:
    description: Number of requests to measure for each model.
    type: int
    default: 200
  warmup:
    description: Number of requests to send to each model before, which are not measured.
    type: int
    default: 20
  max_seconds:
    description:
      - Seconds that the warm-up and the measurement of one model may take each; slow models get fewer requests, but
        never fewer than five.
      - The result says how many there were.
    type: float
    default: 30
  binary:
    description:
      - Whether tensors travel over REST in the binary tensor data extension. Servers without it need V(false), that is
        JSON.
      - gRPC always carries raw contents.
    type: bool
    default: true
  models:
    description: Models to measure, one after another.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description: Name of the model.
        type: str
        required: true
      version:
        description: Version of the model. Without it the server chooses.
        type: str
        default: ''
      golden:
        description:
          - Directory of golden cases. The first in the order of their names is the request.
          - Without it the request is made of zeros as the model's metadata says, with 1 for each dynamic dimension.
        type: path
      p50_ms:
        description: Objective. Milliseconds that the median may reach.
        type: float
      p95_ms:
        description: Objective. Milliseconds that the 95th percentile may reach.
        type: float
      p99_ms:
        description: Objective. Milliseconds that the 99th percentile may reach.
        type: float
extends_documentation_fragment:
  - edgeml.fleet.inference_endpoint
attributes:
  check_mode:
    description: Can run in check mode and return what it would return otherwise.
    support: full
    details: It changes nothing, so that it measures in check mode too.
  diff_mode:
    description: Returns details on what has changed, in diff mode.
    support: none
    details: It changes nothing.
  idempotent:
    description: Run twice with the same options, it changes nothing the second time.
    support: full
    details: It changes nothing.
notes:
  - Percentiles are by the nearest-rank method, so that each is a time that was measured.
  - Times include this client's own work, some tenths of a millisecond.
seealso:
  - module: edgeml.fleet.inference_health
"""

EXAMPLES = r"""
- name: Hold a model to its objective over gRPC
  edgeml.fleet.inference_latency:
    endpoint: grpc://127.0.0.1:8001
    models:
      - name: digits
        version: 1.0.0
        golden: /srv/models/digits/golden
        p95_ms: 25

- name: Measure a model on a server that knows only JSON
  edgeml.fleet.inference_latency:
    endpoint: https://inference.example.com:8000
    binary: false
    samples: 1000
    models:
      - name: surface_defects
  register: measured
"""

RETURN = r"""
models:
  description: What was measured for each of O(models), in their order; also if the module fails.
  returned: when the endpoint is valid
  type: list
  elements: dict
  sample:
    - name: digits
      version: 1.0.0
      samples: 200
      mean_ms: 0.231
      min_ms: 0.187
      p50_ms: 0.224
      p95_ms: 0.305
      p99_ms: 0.412
      max_ms: 0.588
      objective: {p50_ms: null, p95_ms: 25.0, p99_ms: null}
      met: true
  contains:
    name:
      description: Name of the model.
      type: str
    version:
      description: Version as asked for.
      type: str
    samples:
      description: Number of requests that were measured.
      type: int
    mean_ms:
      description: Mean, in milliseconds.
      type: float
    min_ms:
      description: Shortest time, in milliseconds.
      type: float
    p50_ms:
      description: Median, in milliseconds.
      type: float
    p95_ms:
      description: 95th percentile, in milliseconds.
      type: float
    p99_ms:
      description: 99th percentile, in milliseconds.
      type: float
    max_ms:
      description: Longest time, in milliseconds.
      type: float
    objective:
      description: Milliseconds allowed for C(p50_ms), C(p95_ms) and C(p99_ms), null where any are.
      type: dict
    met:
      description: Whether the objective is met.
      type: bool
failures:
  description: All that failed, each as in RV(msg).
  returned: on failure, when the endpoint is valid
  type: list
  elements: str
  sample:
    - "The model 'digits' misses its latency objective (p95 31.200 ms measured, 25 ms allowed, over 200 requests) at …"
msg:
  description: The first failure, that is RV(what), RV(where), RV(seen) and RV(remedy) in one text.
  returned: on failure
  type: str
  sample: >-
    The model 'digits' misses its latency objective (p95 31.200 ms measured, 25 ms allowed, over 200 requests)
    at grpc://127.0.0.1:8001. Seen: p50 12.100 ms, p95 31.200 ms, p99 33.020 ms, max 40.510 ms.
    What to do: look for other load on the host and the network, give the model more engine threads,
    or allow more time if the objective was wrong.
what:
  description: What went wrong.
  returned: on failure
  type: str
  sample: >-
    The model 'digits' misses its latency objective (p95 31.200 ms measured, 25 ms allowed, over 200 requests)
where:
  description: The endpoint or file that it concerns.
  returned: on failure
  type: str
  sample: grpc://127.0.0.1:8001
seen:
  description: What was seen.
  returned: on failure
  type: str
  sample: p50 12.100 ms, p95 31.200 ms, p99 33.020 ms, max 40.510 ms
remedy:
  description: What to do.
  returned: on failure
  type: str
  sample: look for other load on the host and the network
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._inference.connect import ENDPOINT_ARGUMENTS, connect
from ansible_collections.edgeml.fleet.plugins.module_utils._inference.latency import (
    ModelObjective,
    measure_model,
    missed_objective,
)
from ansible_collections.edgeml.fleet.plugins.module_utils._module import run, with_failures

ARGUMENT_SPEC: dict[str, Any] = {
    **ENDPOINT_ARGUMENTS,
    "samples": {"type": "int", "default": 200},
    "warmup": {"type": "int", "default": 20},
    "max_seconds": {"type": "float", "default": 30.0},
    "binary": {"type": "bool", "default": True},
    "models": {
        "type": "list",
        "elements": "dict",
        "required": True,
        "options": {
            "name": {"type": "str", "required": True},
            "version": {"type": "str", "default": ""},
            "golden": {"type": "path"},
            "p50_ms": {"type": "float"},
            "p95_ms": {"type": "float"},
            "p99_ms": {"type": "float"},
        },
    },
}


def measure(module: AnsibleModule) -> dict[str, Any]:
    """Measure each model and compare it with its objectives."""
    options = module.params
    samples, warmup = options["samples"], options["warmup"]
    if samples < 1 or warmup < 0:
        raise FleetError(
            "There is nothing to measure",
            seen=f"samples: {samples}, warmup: {warmup}",
            remedy="give samples of 1 or more and warmup of 0 or more",
        )
    models: list[dict[str, Any]] = []
    failures: list[FleetError] = []
    with connect(**{option: options[option] for option in ENDPOINT_ARGUMENTS}) as client:
        for objective in (ModelObjective(**model) for model in options["models"]):
            try:
                latency = measure_model(
                    client,
                    objective,
                    samples=samples,
                    warmup=warmup,
                    binary=options["binary"],
                    max_seconds=options["max_seconds"],
                )
            except FleetError as error:
                failures.append(error)
                continue
            models.append(latency.as_result())
            if not latency.met:
                failures.append(missed_objective(client.endpoint, latency))
    return with_failures(failures, {"models": models})


def main() -> None:
    """Run the module."""
    run(ARGUMENT_SPEC, measure, required_together=[("client_certificate", "client_key")])


if __name__ == "__main__":
    main()
