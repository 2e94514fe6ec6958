#!/usr/bin/python
# Copyright (c) edgeml.fleet contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation of the action rollout_plan, all of which runs on the controller."""

from __future__ import annotations

DOCUMENTATION = r"""
module: rollout_plan
short_description: Plan in which waves a rollout goes through the fleet
version_added: 0.2.0
author:
  - edgeml.fleet contributors (@edgeml)
description:
  - Checks the settings, and refuses them with the file, the value and what is allowed.
  - Plans the waves from what M(edgeml.fleet.host_state) answered for each host. Hosts that are what they are meant to
    be are in none. Hosts that cannot be reached, and those that need their mirror while it is not there, are pending,
    and told to the ledger.
  - A rollout that was cut short goes on with the size of wave that it had reached, which the ledger tells.
  - Used by the playbook C(edgeml.fleet.rollout). Runs once, on the controller.
options:
  settings:
    description:
      - How the rollout goes, the variable C(edgeml_rollout), which C(meta/schemas/rollout.schema.json) describes.
      - All defaults if omitted.
    type: raw
  state:
    description:
      - V(checked) only checks the settings, which all hosts of the play must share, before any of them is asked.
      - V(resumed) tells whether an earlier run was cut short, so that devices can be asked what they have done since.
      - V(planned) makes the plan and shows it.
    type: str
    choices: [checked, resumed, planned]
    default: planned
  serial:
    description: The lock's serial. Required unless V(state=checked).
    type: int
  ledger:
    description: The fleet's ledger. Required unless V(state=checked).
    type: path
attributes:
  check_mode:
    description: The plan is the same; the ledger is not written.
    support: full
  diff_mode:
    description: There is nothing to compare.
    support: none
  idempotent:
    description: No host is changed.
    support: full
seealso:
  - module: edgeml.fleet.rollout_wave
  - module: edgeml.fleet.host_state
"""

EXAMPLES = r"""
- name: Plan the waves
  edgeml.fleet.rollout_plan:
    serial: 7
    ledger: fleet.ledger.jsonl
  run_once: true
  register: edgeml_rollout_plan
"""

RETURN = r"""
rollout:
  description: Name of the rollout, the lock's serial and a number.
  returned: when planned
  type: str
  sample: "7.1"
waves:
  description:
    - The waves in their order, each with its number, its name, its hosts and its keeper.
    - A keeper is a name of the controller in a play. Ansible goes on with it when all hosts of the play are lost.
  returned: when planned
  type: list
  elements: dict
  sample:
    - {number: 1, name: canary, hosts: [camera-1], keeper: wave-1}
    - {number: 2, name: "", hosts: [camera-2, camera-3], keeper: wave-2}
order:
  description: All hosts that are to do, in the order of their waves.
  returned: when planned
  type: list
  elements: str
  sample: [camera-1, camera-2, camera-3]
batches:
  description: The hosts of each wave and its keeper.
  returned: when planned
  type: list
  elements: list
  sample: [[camera-1, wave-1], [camera-2, camera-3, wave-2]]
sites:
  description: The site of each device.
  returned: when planned
  type: dict
  sample: {camera-1: berlin, camera-2: berlin, camera-3: berlin}
interrupted:
  description: Whether the last run of this rollout ended without a word, as when its controller was killed.
  returned: when resumed
  type: bool
  sample: false
pending:
  description: Hosts that cannot be reached, or lack their mirror, with the reason.
  returned: when planned
  type: dict
  sample: {camera-4: "It cannot be reached: Connection timed out"}
unchanged:
  description: How many devices are what they are meant to be.
  returned: when planned
  type: int
  sample: 12
done:
  description: How many of them an earlier run of this rollout has brought there.
  returned: when planned
  type: int
  sample: 0
finished:
  description: The last wave that earlier runs of this rollout have finished, 0 for none.
  returned: when planned
  type: int
  sample: 0
elsewhere:
  description: How many devices of this rollout are neither done nor among the hosts of this run.
  returned: when planned
  type: int
  sample: 0
mirrors:
  description: The mirrors that are to be brought up to date first.
  returned: when planned
  type: list
  elements: str
  sample: [berlin-mirror]
mirror_batch:
  description: These mirrors and their keeper, empty if there are none or the window is closed.
  returned: when planned
  type: list
  elements: str
  sample: [berlin-mirror, wave-mirrors]
settings:
  description: The option O(settings), which M(edgeml.fleet.rollout_wave) takes from the plan.
  returned: when planned
  type: raw
  sample: {first: 1, growth: 3}
serial:
  description: The option O(serial), which M(edgeml.fleet.rollout_wave) takes from the plan.
  returned: when planned
  type: int
  sample: 7
ledger:
  description: The option O(ledger), which M(edgeml.fleet.rollout_wave) takes from the plan.
  returned: when planned
  type: str
  sample: fleet.ledger.jsonl
"""
