#!/usr/bin/python
# Copyright (c) edgeml.fleet contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation of the action fleet_report, all of which runs on the controller."""

from __future__ import annotations

DOCUMENTATION = r"""
module: fleet_report
short_description: Show what a fleet is now, as a page, JSON and files for Prometheus and Grafana
version_added: 0.2.0
author:
  - edgeml.fleet contributors (@edgeml)
description:
  - Collects what the hosts of the play answered in the playbook C(edgeml.fleet.report) and shows it as a short table.
  - Writes it as one static HTML page, as JSON, as metrics for the textfile collector of node_exporter, with targets and
    alert rules for Prometheus and a dashboard for Grafana.
  - What is wrong with hosts is told and fails nothing. Runs once, on the controller.
options:
  directory:
    description:
      - Directory on the controller for C(report.html), C(report.json), C(report.prom), C(targets.json), C(alerts.yml)
        and C(dashboard.json). Nothing is written if it is empty.
      - Each file is replaced at once, so that Prometheus and node_exporter may read them at any time.
    type: path
    default: ""
  fleet:
    description: Name of the fleet, which is a label of all metrics.
    type: str
    required: true
  ledger:
    description:
      - The fleet's ledger, JSON lines that tell who has what since when. It tells what a host that does not answer had
        last, and since when a host lacks its release. A file that does not exist counts as empty.
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
  - module: edgeml.fleet.runtime_release_info
  - module: edgeml.fleet.host_state
"""

EXAMPLES = r"""
- name: Show the report
  edgeml.fleet.fleet_report:
    fleet: example
    directory: build/report
"""

RETURN = r"""
totals:
  description: Number of devices by state, and how many of them need attention.
  returned: success
  type: dict
  sample:
    hosts: {failed: 0, drifted: 1, unreachable: 0, pending: 2, current: 97}
    attention: 3
files:
  description: The files written.
  returned: success
  type: list
  elements: str
  sample: [build/report/report.html, build/report/report.json]
"""
