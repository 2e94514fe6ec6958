# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The files of the fleet's report."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible_collections.edgeml.fleet.plugins.plugin_utils.reports.dashboard import dashboard
from ansible_collections.edgeml.fleet.plugins.plugin_utils.reports.page import page
from ansible_collections.edgeml.fleet.plugins.plugin_utils.reports.prometheus import metrics, rules, targets


def fleet_texts(directory: str, report: Mapping[str, Any]) -> dict[Path, str]:
    """Return the text of each file by its path below `directory`."""
    texts = {
        "report.html": page(report),
        "report.json": json.dumps(report, indent=1) + "\n",
        "report.prom": metrics(report),
        "targets.json": json.dumps(targets(report), indent=1) + "\n",
        "alerts.yml": rules(report),
        "dashboard.json": dashboard(report),
    }
    return {Path(directory) / name: text for name, text in texts.items()}
