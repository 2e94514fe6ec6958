#!/usr/bin/python
# Copyright (c) edgeml.fleet contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ansible module: check an inference server and its models."""

from __future__ import annotations

DOCUMENTATION = r"""
module: inference_health
short_description: Check that an inference server and its models answer, and answer right
version_added: 0.1.0
author: edgeml.fleet contributors (@edgeml)
description:
  - Asks any server of the Open Inference Protocol v2, over REST or gRPC, whether it is live and ready, and for its
    metadata; then, for each of O(models), whether it is ready, for its metadata, and for the answers to its golden
    cases.
  - All models are checked, also after one has failed; then the module fails with the first failure.
options:
  wait:
    description:
      - Seconds to go on asking until the server is live and ready.
      - One request, with its connection and TLS handshake, is waited for just as long where O(timeout) is shorter, so
        that a slow server answers instead of being asked anew.
    type: float
    default: 0.0
  models:
    description: Models to check. Without any, only the server is checked.
    type: list
    elements: dict
    default: []
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
          - Directory of golden cases, each a file C(*.json) with C(inputs) and C(outputs) in the protocol's JSON form.
          - Floating outputs may differ by C(tolerance.absolute) + C(tolerance.relative) * abs(expected), by default
            0.0001 and 0.001; NaN equals NaN. All others must be equal.
          - If a case has a C(label), the largest value of the first floating output must be the one with that label.
          - Tensors are sent in binary form over gRPC, and over REST if the server's metadata has the extension
            C(binary_tensor_data).
        type: path
      labels:
        description: File of the model's labels, one a line. Without it C(labels.txt) beside the golden directory.
        type: path
extends_documentation_fragment:
  - edgeml.fleet.inference_endpoint
attributes:
  check_mode:
    description: Can run in check mode and return what it would return otherwise.
    support: full
    details: It changes nothing, so that it checks in check mode too.
  diff_mode:
    description: Returns details on what has changed, in diff mode.
    support: none
    details: It changes nothing.
  idempotent:
    description: Run twice with the same options, it changes nothing the second time.
    support: full
    details: It changes nothing.
seealso:
  - module: edgeml.fleet.inference_latency
"""

EXAMPLES = r"""
- name: Wait up to a minute until the server is ready
  edgeml.fleet.inference_health:
    endpoint: http+unix:///run/edgeml/rest.sock
    wait: 60

- name: Check that a model answers its golden cases over gRPC
  edgeml.fleet.inference_health:
    endpoint: grpcs://192.0.2.10:8001
    server_name: berlin-amd64.edgeml.internal
    ca_file: /etc/edgeml/tls/ca.crt
    bearer_token: "{{ inference_token }}"
    models:
      - name: digits
        version: 1.0.0
        golden: /srv/models/digits/golden
"""

RETURN = r"""
server:
  description: What the server says about itself.
  returned: when the server is ready
  type: dict
  sample: {name: edgeml-runtime, version: 0.1.0}
  contains:
    name:
      description: Name of the server.
      type: str
    version:
      description: Version of the server.
      type: str
models:
  description: What was seen of each of O(models), in their order; also if the module fails.
  returned: when the server is ready
  type: list
  elements: dict
  sample:
    - name: digits
      version: 1.0.0
      ready: true
      provider: CPU
      golden:
        - case: seven
          description: A seven, written by hand
          passed: true
          label: "7"
          difference: ""
          max_absolute_error: 2.0e-07
  contains:
    name:
      description: Name of the model.
      type: str
    version:
      description: Version as asked for, else the versions that the server named.
      type: str
    ready:
      description: Whether the model is ready.
      type: bool
    provider:
      description: What computes it, such as V(CPU) or V(CUDA); empty where the server does not say so.
      type: str
    golden:
      description: Outcome of each golden case, in the order of their names.
      type: list
      elements: dict
      contains:
        case:
          description: Name of the case, that is its file name without the ending.
          type: str
        description:
          description: Description of the case.
          type: str
        passed:
          description: Whether the answer is as expected.
          type: bool
        label:
          description: Label of the answer; null if the model has no labels.
          type: str
        difference:
          description: What was seen and what was expected; empty if the case passed.
          type: str
        max_absolute_error:
          description: Largest difference between numbers; null if there are none to compare or one is not finite.
          type: float
failures:
  description: All that failed, each as in RV(msg).
  returned: on failure, when the server is ready
  type: list
  elements: str
  sample:
    - "The model 'digits' is not ready at grpc://127.0.0.1:8001. Seen: gRPC ready: false. What to do: ..."
msg:
  description: The first failure, that is RV(what), RV(where), RV(seen) and RV(remedy) in one text.
  returned: on failure
  type: str
  sample: >-
    The inference server does not answer at http://127.0.0.1:8000. Seen: Connection refused.
    What to do: start the server, read its log, or correct scheme, address and TLS options.
what:
  description: What went wrong.
  returned: on failure
  type: str
  sample: The inference server does not answer
where:
  description: The endpoint or file that it concerns.
  returned: on failure
  type: str
  sample: http://127.0.0.1:8000
seen:
  description: What was seen.
  returned: on failure
  type: str
  sample: Connection refused
remedy:
  description: What to do.
  returned: on failure
  type: str
  sample: start the server, read its log, or correct scheme, address and TLS options
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.edgeml.fleet.plugins.module_utils._inference.connect import ENDPOINT_ARGUMENTS, connect
from ansible_collections.edgeml.fleet.plugins.module_utils._inference.health import (
    ModelCheck,
    check_model,
    wait_until_ready,
)
from ansible_collections.edgeml.fleet.plugins.module_utils._module import run, with_failures

ARGUMENT_SPEC: dict[str, Any] = {
    **ENDPOINT_ARGUMENTS,
    "wait": {"type": "float", "default": 0.0},
    "models": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {
            "name": {"type": "str", "required": True},
            "version": {"type": "str", "default": ""},
            "golden": {"type": "path"},
            "labels": {"type": "path"},
        },
    },
}


def check(module: AnsibleModule) -> dict[str, Any]:
    """Ask the server for its health and the models for their golden outputs."""
    options = module.params
    endpoint = {option: options[option] for option in ENDPOINT_ARGUMENTS}
    # A handshake that is cut off at `timeout` begins again, and on a slow host never ends.
    endpoint["timeout"] = max(options["timeout"], options["wait"])
    with connect(**endpoint) as client:
        wait_until_ready(client, options["wait"])
        server = client.server_metadata()
        health = [check_model(client, ModelCheck(**model), server) for model in options["models"]]
    result = {
        "server": {"name": server.name, "version": server.version},
        "models": [model.as_result() for model in health],
    }
    return with_failures([failure for model in health for failure in model.failures], result)


def main() -> None:
    """Run the module."""
    run(ARGUMENT_SPEC, check, required_together=[("client_certificate", "client_key")])


if __name__ == "__main__":
    main()
