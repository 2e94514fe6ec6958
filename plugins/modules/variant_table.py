#!/usr/bin/python
# Copyright (c) edgeml.fleet contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation of the action variant_table, all of which runs on the controller."""

from __future__ import annotations

DOCUMENTATION = r"""
module: variant_table
short_description: Choose the hosts that measure variants, and write what they found
version_added: 0.1.0
author:
  - edgeml.fleet contributors (@edgeml)
description:
  - With O(state=planned) chooses one host of each kind (architecture, features of the processor, memory, accelerator)
    for each model that has C(variant) V(best) in the catalogue, and what the table lacks of it.
  - With O(state=written) adds what M(edgeml.fleet.variant_measurement) answered on these hosts to the table, from
    which the inventory plugin P(edgeml.fleet.placement#inventory) chooses, shows it, and writes a Markdown table and a
    picture for each model.
  - Runs once, on the controller.
options:
  state:
    description: What is done.
    type: str
    choices: [planned, written]
    default: planned
  path:
    description: The table, a file of JSON lines beside the lock. It need not exist.
    type: path
    required: true
  lock:
    description: Content of the lock.
    type: dict
    required: true
  settings:
    description: The variable C(edgeml_measure), see C(meta/schemas/variables.schema.json).
    type: dict
  plan:
    description: What this module returned for O(state=planned). Needed for O(state=written).
    type: dict
  directory:
    description: Directory on the controller for C(measurements.md) and C(MODEL.svg). None are written if it is empty.
    type: path
    default: ""
attributes:
  check_mode:
    description: The table is shown and not written.
    support: full
  diff_mode:
    description: There is nothing to compare.
    support: none
  idempotent:
    description: Where nothing new was measured, nothing is written.
    support: full
"""

EXAMPLES = r"""
- name: Choose the hosts that measure
  edgeml.fleet.variant_table:
    path: "{{ edgeml_measurements_file }}"
    lock: "{{ edgeml_lock_file | edgeml.fleet.published_lock }}"
    settings: {window: {from: "22:00", to: "05:00"}}
  run_once: true
  register: edgeml_measure_plan
"""

RETURN = r"""
hosts:
  description: What each host has to measure.
  returned: with O(state=planned)
  type: dict
  sample: {board: [{name: digits, version: 1.4.0, variants: [int8, fp32], kind: arm64 asimddp 4GiB}]}
seconds_left:
  description: Seconds until the window closes.
  returned: with O(state=planned)
  type: float
  sample: 86400.0
rows:
  description: How many rows the table gained or renewed.
  returned: with O(state=written)
  type: int
  sample: 2
files:
  description: The files written.
  returned: with O(state=written)
  type: list
  elements: str
  sample: [fleet.measurements.jsonl]
"""
