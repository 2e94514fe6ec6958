#!/usr/bin/python
# Copyright (c) edgeml.fleet contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation of the action preflight_report, all of which runs on the controller."""

from __future__ import annotations

DOCUMENTATION = r"""
module: preflight_report
short_description: Show one table of what the preflight of all hosts found
version_added: 0.1.0
author:
  - edgeml.fleet contributors (@edgeml)
description:
  - Collects what M(edgeml.fleet.host_preflight) found on all hosts of the play, as the roles
    C(edgeml.fleet.inference_runtime), C(edgeml.fleet.site_mirror) and C(edgeml.fleet.model_store) registered it, and
    shows one line for each finding.
  - Fails for the whole play if a finding refuses, unless O(refuse) says otherwise.
  - Runs once, on the controller.
options:
  path:
    description: File on the controller to which the findings are written as JSON. None if empty.
    type: path
    default: ""
  refuse:
    description: Whether to fail if a host is refused. V(false) is for who lets those hosts fail that RV(refused) names.
    type: bool
    default: true
  waits:
    description:
      - Whether a device that lacks something and whose mirror does not have it, or is not there, waits (severity
        C(wait)) instead of being refused. The playbook C(edgeml.fleet.rollout) leaves those devices out.
    type: bool
    default: false
attributes:
  check_mode:
    description: The report is shown and written as well.
    support: full
  diff_mode:
    description: There is nothing to compare.
    support: none
  idempotent:
    description: No host is changed.
    support: full
"""

EXAMPLES = r"""
- name: Refuse before any host is touched
  edgeml.fleet.preflight_report:
    path: preflight.json
"""

RETURN = r"""
findings:
  description: What was found on all hosts, those that refuse first.
  returned: success
  type: list
  elements: dict
  sample:
    - host: berlin-1
      severity: refuse
      name: disk_space
      value: 410 MiB free at /var/lib/docker
      need: 812 MiB for what will come, beside what is there
      remedy: free disk space there or use a larger disk
refused:
  description: The hosts that are refused, with the reason of each.
  returned: always
  type: dict
  sample: {berlin-1: "disk_space: 410 MiB free at /var/lib/docker"}
"""
