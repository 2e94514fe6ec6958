#!/usr/bin/python
# Copyright (c) edgeml.fleet contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation of the action plan_report, all of which runs on the controller."""

from __future__ import annotations

DOCUMENTATION = r"""
module: plan_report
short_description: Show what a converge would do to all hosts
version_added: 0.1.0
author:
  - edgeml.fleet contributors (@edgeml)
description:
  - Collects what the modules M(edgeml.fleet.runtime_release) and M(edgeml.fleet.mirror_sync) answered in check mode on
    the hosts of the play, as the entry points C(plan) of the roles C(edgeml.fleet.inference_runtime) and
    C(edgeml.fleet.site_mirror) registered it.
  - Shows a table by site with totals, and writes the same as JSON and as Markdown.
  - Hosts that could not be reached are shown as unknown. Fails, after it has shown everything, if a host refuses its
    release.
  - Runs once, on the controller. The variables C(edgeml_site_uplink_mbit) and C(edgeml_site_lan_mbit) of a site's hosts
    are its rates in Mbit/s, from which times are estimated.
options:
  directory:
    description: Directory on the controller for C(plan.json) and C(plan.md). Nothing is written if it is empty.
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
"""

EXAMPLES = r"""
- name: Show the plan
  edgeml.fleet.plan_report:
    directory: build/plan
"""

RETURN = r"""
totals:
  description: Sums over all hosts. Bytes are those to move, seconds the time that they take, null without a rate.
  returned: success
  type: dict
  sample:
    hosts: {changed: 2, unchanged: 1, unknown: 0, failed: 0}
    models: {added: 0, changed: 2, removed: 0}
    starts: 0
    restarts: 2
    packages: {install: 0, remove: 0}
    bytes: {uplink: 61440, lan: 122880}
    seconds: {uplink: 0.1, lan: null}
files:
  description: The files written.
  returned: success
  type: list
  elements: str
  sample: [build/plan/plan.json, build/plan/plan.md]
"""
