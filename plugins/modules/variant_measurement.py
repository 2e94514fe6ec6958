#!/usr/bin/python
# Copyright (c) edgeml.fleet contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Measure variants of models on this host."""

from __future__ import annotations

DOCUMENTATION = r"""
module: variant_measurement
short_description: Measure variants of models on the host that is to serve one of them
version_added: 0.1.0
author:
  - edgeml.fleet contributors (@edgeml)
description:
  - Starts each model alone in a container of the runtime's image, beside the release that serves, and measures latency,
    throughput, memory, cold start and, where the kernel counts it, energy.
  - The container listens on sockets that only the host reaches, has little weight when processors are short, and is
    removed afterwards with all that was fetched for it. What a run that was killed has left goes with the next one.
  - Image and models come from the registry that O(image) names. As for a release, a lock that the keys in
    O(signatures.trusted_keys) have signed has to name them.
extends_documentation_fragment:
  - edgeml.fleet.signatures
  - edgeml.fleet.release_container
  - edgeml.fleet.release_container.models
requirements:
  - Docker Engine 20.10 or newer with its command line client
options:
  root:
    description: Directory on the host for models, releases and state.
    type: path
    default: /var/lib/edgeml
  name:
    description: Name of the runtime beside which the models are measured.
    type: str
    default: runtime
  image:
    description: The runtime, by digest.
    type: str
    required: true
  image_size:
    description: Bytes to transfer if the host lacks the image.
    type: int
    default: 0
  configuration:
    description: C(engine) and C(limits) as the runtime documents them. What is in C(listen) does not count.
    type: dict
    default: {}
  lock:
    description: Content of the lock that names image and models.
    type: dict
  ca_file:
    description: Certificate authority of the registry.
    type: path
    default: ""
  start_timeout:
    description: Seconds that a model may take until it is ready, and each request.
    type: float
    default: 60
  samples:
    description: Requests to each model, one after another, for its latency.
    type: int
    default: 200
  seconds:
    description: Seconds that the latency of one model may take at most, and that its throughput takes.
    type: float
    default: 5
  max_seconds:
    description: Seconds after which no other model begins, such as until the end of a maintenance window.
    type: float
    default: 3600
attributes:
  check_mode:
    description: Can run in check mode and return what it would return otherwise.
    support: partial
    details: Nothing is measured.
  diff_mode:
    description: Returns details on what has changed, in diff mode.
    support: none
    details: It changes nothing.
  idempotent:
    description: Run twice with the same options, it changes nothing the second time.
    support: full
    details: It leaves nothing on the host.
notes:
  - Percentiles are by the nearest-rank method. Figures are those of one request after another on one connection, and of
    one client a processor at once.
  - Energy is that of the whole host while it answers, divided by the requests.
seealso:
  - module: edgeml.fleet.variant_table
  - module: edgeml.fleet.inference_latency
"""

EXAMPLES = r"""
- name: Measure two variants
  edgeml.fleet.variant_measurement:
    image: "{{ release.image }}"
    ca_file: /etc/docker/certs.d/registry.edgeml.internal:5443/ca.crt
    signatures: {mode: ignored}
    models:
      - name: digits
        version: 1.4.0
        variant: fp32
        repository: edgeml/models/digits
        digest: sha256:9834876dcfb05cb167a5c24953eba58c4ac89b1adf57f28f2f9d09af107ee8f0
        size: 20480
      - name: digits
        version: 1.4.0
        variant: int8
        repository: edgeml/models/digits
        digest: sha256:2c624232cdd221771294dfbb310aca000a0df6ac8b66b696d90ef06fdefb64a3
        size: 10240
"""

RETURN = r"""
measured:
  description:
    - What was measured, one item for each model. C(throughput) is in requests a second with C(clients) at once.
      C(energy_j) is in joules a request, null where the kernel does not count it. C(deviation) is the largest
      difference of a number from what the golden cases expect.
    - One that does not serve on this host has C(failure) instead of figures.
  returned: success
  type: list
  elements: dict
  sample:
    - model: digits
      version: 1.4.0
      variant: int8
      digest: sha256:2c624232cdd221771294dfbb310aca000a0df6ac8b66b696d90ef06fdefb64a3
      bytes: 10240
      image: sha256:5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef
      protocol: grpc
      cold_start_s: 0.91
      p50_ms: 0.21
      p95_ms: 0.31
      p99_ms: 0.44
      samples: 200
      throughput: 6100.2
      clients: 2
      memory_mb: 61.4
      energy_j: null
      golden_passed: 8
      golden_cases: 8
      deviation: 0.0025
left:
  description: Models for which no time was left.
  returned: success
  type: list
  elements: str
  sample: []
failures:
  description: What could not be measured for a reason that says nothing of the variant, such as a mirror that lacks it.
  returned: on failure
  type: list
  elements: str
  sample: []
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.edgeml.fleet.plugins.module_utils._host.engine import DockerEngine
from ansible_collections.edgeml.fleet.plugins.module_utils._module import command_runner, run, with_failures
from ansible_collections.edgeml.fleet.plugins.module_utils._release.approval import approve
from ansible_collections.edgeml.fleet.plugins.module_utils._release.options import (
    ARGUMENT_SPEC as RELEASE_OPTIONS,
)
from ansible_collections.edgeml.fleet.plugins.module_utils._release.options import desired_release
from ansible_collections.edgeml.fleet.plugins.module_utils._release.variant_trial import (
    Effort,
    measure_variants,
    release_for,
    trial_configuration,
)

SHARED = ("root", "name", "image_size", "models", "configuration", "limits", "environment", "devices", "gpus",
          "server", "ca_file", "lock", "signatures", "start_timeout")  # fmt: skip
ARGUMENT_SPEC: dict[str, Any] = {
    **{name: RELEASE_OPTIONS[name] for name in SHARED},
    "image": {"type": "str", "required": True},
    "samples": {"type": "int", "default": 200},
    "seconds": {"type": "float", "default": 5.0},
    "max_seconds": {"type": "float", "default": 3600.0},
}


def measure(module: AnsibleModule) -> dict[str, Any]:
    """Measure each model alone."""
    options = module.params
    if module.check_mode or not options["models"]:
        return {"measured": [], "left": []}
    approve(options, check_mode=True)
    private = {"configuration": trial_configuration(options), "secrets_directory": "", "secrets": None}
    desired = desired_release({**options, **private})
    release = release_for(DockerEngine(command_runner(module)), options)
    effort = Effort(options["samples"], options["seconds"], options["max_seconds"])
    result = measure_variants(release, desired, effort)
    return with_failures(result.pop("failures"), result)


def main() -> None:
    """Run the module."""
    run(ARGUMENT_SPEC, measure)


if __name__ == "__main__":
    main()
