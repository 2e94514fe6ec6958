#!/usr/bin/python
# Copyright (c) edgeml.fleet contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation of the action verify_report, all of which runs on the controller."""

from __future__ import annotations

DOCUMENTATION = r"""
module: verify_report
short_description: Show one table of what the verification of all devices found
version_added: 0.2.0
author:
  - edgeml.fleet contributors (@edgeml)
description:
  - Collects what the hosts of the play answered in the playbook C(edgeml.fleet.verify), shows it as one table and
    writes it as JSON.
  - The checks are whether a host can be reached, is healthy, answers its golden cases, serves the digests of inventory
    and lock, meets its latency objectives, and is as its last converge left it.
  - Fails nothing. RV(failed_hosts) tells the playbook which hosts did not pass. Runs once, on the controller.
options:
  directory:
    description: Directory on the controller for C(verify.json). Nothing is written if it is empty.
    type: path
    default: ""
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
seealso:
  - module: edgeml.fleet.inference_health
  - module: edgeml.fleet.inference_latency
"""

EXAMPLES = r"""
- name: Show what was found
  edgeml.fleet.verify_report:
    directory: build/verify
  run_once: true
  register: edgeml_verified
"""

RETURN = r"""
totals:
  description: How many hosts passed, and how many did not.
  returned: success
  type: dict
  sample: {passed: 41, failed: 1}
failed_hosts:
  description: The hosts that did not pass, with the reasons.
  returned: success
  type: dict
  sample: {camera-2: "digits 1.0.0 (9834876dcfb0) is served, the inventory says 1.1.0 (5f70bf18aa10)"}
files:
  description: The files written.
  returned: success
  type: list
  elements: str
  sample: [build/verify/verify.json]
"""
