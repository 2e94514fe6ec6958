#!/usr/bin/python
# Copyright (c) edgeml.fleet contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation of the action rollout_wave, all of which runs on the controller."""

from __future__ import annotations

DOCUMENTATION = r"""
module: rollout_wave
short_description: Begin, judge and watch a wave of a rollout
version_added: 0.2.0
author:
  - edgeml.fleet contributors (@edgeml)
description:
  - Decides whether a wave may begin (window, approval), what became of its hosts (what failed, what the gates measured,
    what they serve now) and whether the rollout goes on, shows it as a short table and writes it to the ledger.
  - Fails nothing. RV(stop) tells the playbook to end the play, and the step V(summed_up) which hosts count as failed.
  - Used by the playbook C(edgeml.fleet.rollout). Runs once for each step, on the controller.
options:
  step:
    description:
      - V(opened) is before a wave, V(judged) after it. V(judged) also waits for the C(pause_seconds) of
        C(edgeml_rollout), after which V(watched) judges again.
      - V(summed_up) is after all waves, V(went_back) after the hosts that V(summed_up) told to go back did so, or did
        not.
    type: str
    choices: [opened, judged, watched, summed_up, went_back]
    required: true
  hosts:
    description: For V(went_back), the hosts that were to go back.
    type: list
    elements: str
    default: []
  plan:
    description: What M(edgeml.fleet.rollout_plan) returned, with the settings, the lock's serial and the ledger.
    type: dict
    required: true
attributes:
  check_mode:
    description: Tells what each wave would change. Asks and waits for nothing, and does not write the ledger.
    support: full
  diff_mode:
    description: There is nothing to compare.
    support: none
  idempotent:
    description: No host is changed.
    support: full
seealso:
  - module: edgeml.fleet.rollout_plan
"""

EXAMPLES = r"""
- name: Judge the wave
  edgeml.fleet.rollout_wave:
    step: judged
    plan: "{{ edgeml_rollout_plan }}"
  run_once: true
  register: edgeml_rollout_judged
"""

RETURN = r"""
stop:
  description: Whether the rollout ends here.
  returned: for a wave
  type: bool
  sample: false
reason:
  description: Why it ends, empty if it does not.
  returned: always
  type: str
  sample: "Wave 2 of 3: 1 of 3 hosts failed, 0 may: camera-2: The model digits 1.1.0 misses its objective"
red:
  description: Whether the run counts as failed. A closed window ends a run well.
  returned: when it ends, and when summed up
  type: bool
  sample: true
waiting:
  description:
    - The hosts of the wave that need what their mirror lacks, with the reason, since this run could not bring the
      mirror up to date. They are pending.
  returned: when a wave may begin
  type: dict
  sample: {camera-3: "Its mirror could not be brought up to date: 2 of 3 parts are missing"}
pause:
  description: Whether the wave is to be judged again, since there was a pause.
  returned: when judged
  type: bool
  sample: false
failed_hosts:
  description: The hosts that failed, with the reason; after V(went_back), those that did not go back.
  returned: when summed up, and when hosts went back
  type: dict
  sample: {camera-2: The model digits 1.1.0 misses its objective}
roll_back:
  description: The hosts that are to go back, each with its runtimes and the release that each had before.
  returned: when summed up
  type: dict
  sample: {camera-1: [{name: runtime, release: 3b1f9c0d}]}
"""
