#!/usr/bin/python
# Copyright (c) edgeml.fleet contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation of the action ledger, all of which runs on the controller."""

from __future__ import annotations

DOCUMENTATION = r"""
module: ledger
short_description: Write what hosts tell of their releases to the fleet's ledger
version_added: 0.2.0
author:
  - edgeml.fleet contributors (@edgeml)
description:
  - The ledger is a file of JSON lines beside the lock that tells who has what since when, and why not. It can be
    committed; two versions of it are merged by the union of their lines.
  - Takes what M(edgeml.fleet.runtime_release_info) answered for each host of the play. Lines that the ledger has are
    not written again.
  - Runs once, on the controller.
options:
  state:
    description:
      - V(appended) adds lines, each on the disk before the task ends. A ledger that cannot be written is a warning,
        since the devices remember the same.
      - V(rebuilt) writes the whole file anew, sorted, with all that it had.
    type: str
    choices: [appended, rebuilt]
    default: appended
  variable:
    description: Variable of each host with the answer of M(edgeml.fleet.runtime_release_info).
    type: str
    required: true
  path:
    description: The ledger.
    type: path
    required: true
  serial:
    description: The lock's serial, for the last entry of each runtime.
    type: int
  removed:
    description: Whether the runtimes have been removed since the hosts were asked.
    type: bool
    default: false
attributes:
  check_mode:
    description: Nothing is written.
    support: full
  diff_mode:
    description: There is nothing to compare.
    support: none
  idempotent:
    description: Lines that are known are not written again.
    support: full
seealso:
  - module: edgeml.fleet.runtime_release_info
"""

EXAMPLES = r"""
- name: Ask what the host remembers
  edgeml.fleet.runtime_release_info:
  register: edgeml_ledger_told

- name: Write it to the ledger
  edgeml.fleet.ledger:
    variable: edgeml_ledger_told
    path: fleet.ledger.jsonl
  run_once: true
"""

RETURN = r"""
lines:
  description: How many lines the ledger gained.
  returned: success
  type: int
  sample: 3
"""
