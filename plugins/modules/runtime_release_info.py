#!/usr/bin/python
# Copyright (c) edgeml.fleet contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tell what a host knows of its releases."""

from __future__ import annotations

DOCUMENTATION = r"""
module: runtime_release_info
short_description: Tell what a host knows of its releases
version_added: 0.1.0
author:
  - edgeml.fleet contributors (@edgeml)
description:
  - Tells which release each runtime of a host serves and since when, what is wrong with it, which one was before, which
    ones the host refuses and why, and what was tried.
  - Reads only. Nothing is sent to what serves but the question whether it is ready.
options:
  root:
    description: Directory on the host for models, releases and state.
    type: path
    default: /var/lib/edgeml
  history:
    description: How many of the last tries of each runtime to tell.
    type: int
    default: 20
attributes:
  check_mode:
    description: Can run in check mode and return what it would return otherwise.
    support: full
  diff_mode:
    description: Returns details on what has changed, in diff mode.
    support: none
    details: It changes nothing.
  idempotent:
    description: Run twice with the same options, it changes nothing the second time.
    support: full
    details: It changes nothing.
seealso:
  - module: edgeml.fleet.runtime_release
"""

EXAMPLES = r"""
- name: Ask what runs, and why something does not
  edgeml.fleet.runtime_release_info:
  register: releases

- name: Show what this host refuses
  ansible.builtin.debug:
    msg: "{{ releases.runtimes | map(attribute='refused') | flatten }}"
"""

RETURN = r"""
runtimes:
  description:
    - What the host knows of each of its runtimes.
    - C(active) and C(previous) are releases as RV(edgeml.fleet.runtime_release#module:release) describes them, or null.
      C(since) is the time in UTC since when the active one serves.
    - C(serving) tells whether the active release runs, ready and complete; C(drift) says what is wrong with it.
    - C(scrub) tells when the host last read its content anew (C(time), UTC) and what was not what its digest says
      (C(found)); empty before the first time. What is not healed is also in C(drift).
    - C(running) is what a transaction does at this moment, empty if none runs.
    - C(refused) are the releases that are not tried again until they change or are forced.
    - C(history) are the last tries, the newest last. C(outcome) is C(active), C(refused) (by a gate), C(failed)
      (anything else) or C(rolled_back); C(by) is C(controller), C(operator) or C(guard). A way back adds C(rolled_back)
      for the release that it left, then C(active) for the one that serves. C(place) is the mark of the history and the
      number of the entry in it, by which tries have an order whatever the host's clock said.
  returned: success
  type: list
  elements: dict
  sample:
    - name: runtime
      active: {id: 3b1f9c0d, image: "registry.edgeml.internal:5443/edgeml/runtime@sha256:5f70bf18", models: []}
      previous: null
      since: "2026-11-28T06:00:00Z"
      serving: true
      drift: []
      scrub: {time: "2026-11-28T05:00:00Z", found: []}
      running: ""
      refused:
        - {release: 5f70bf18, reason: "The model digits 1.1.0 misses its objective", time: "2026-11-28T07:00:00Z"}
      history:
        - place: 1f0c9a2e-000017
          time: "2026-11-28T06:00:00Z"
          runtime: runtime
          release: 3b1f9c0d
          attempt: 9d01aa2c
          outcome: active
          reason: ""
          by: controller
          models: [{name: digits, version: 1.0.0, variant: default, digest: "sha256:9834876d"}]
          gates: [{gate: p95, model: digits, protocol: grpc, measured: 0.21, allowed: 5.0, unit: ms, passed: true}]
"""

from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.edgeml.fleet.plugins.module_utils._host.engine import DockerEngine, NoEngine
from ansible_collections.edgeml.fleet.plugins.module_utils._module import command_runner, run
from ansible_collections.edgeml.fleet.plugins.module_utils._release.information import runtimes


def tell(module: AnsibleModule) -> dict[str, Any]:
    """Return what the host knows."""
    has_engine = module.get_bin_path("docker") is not None
    engine = DockerEngine(command_runner(module)) if has_engine else NoEngine()
    return {"runtimes": runtimes(engine, Path(module.params["root"]), module.params["history"])}


def main() -> None:
    """Run the module."""
    run(
        {
            "root": {"type": "path", "default": "/var/lib/edgeml"},
            "history": {"type": "int", "default": 20},
        },
        tell,
    )


if __name__ == "__main__":
    main()
