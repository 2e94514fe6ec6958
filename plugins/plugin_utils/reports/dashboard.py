# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A dashboard for Grafana over the metrics of the report and of the runtimes. It asks which Prometheus to use."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.edgeml.fleet.plugins.plugin_utils.reports.prometheus import label_value

_SOURCE = {"type": "prometheus", "uid": "${source}"}
_WIDTH = 24
_SELECTED = '{FLEET, site=~"$site", host=~"$host"}'
#: Title, kind of panel, unit, width, height, queries as (expression, legend).
_PANELS: tuple[tuple[str, str, str, int, int, Sequence[tuple[str, str]]], ...] = (
    ("Hosts by state", "stat", "none", 12, 5, [
        ('sum by (state) (edgeml_host_state{FLEET, site=~"$site"})', "{{state}}")]),
    ("Runtimes that answer", "stat", "percentunit", 6, 5, [
        ('avg(up{FLEET, site=~"$site", runtime!=""})', "answer")]),
    ("First certificate to end", "stat", "s", 6, 5, [
        ('min(edgeml_certificate_not_after_timestamp_seconds{FLEET, site=~"$site"}) - time()', "time left")]),
    ("Hosts that are not current", "table", "none", 12, 9, [
        (f'edgeml_host_state{_SELECTED[:-1]}, state!="current"}} == 1', "")]),
    ("What runs where", "table", "none", 12, 9, [(f"edgeml_placed_model_info{_SELECTED}", "")]),
    ("p95 latency of live requests", "timeseries", "s", 12, 9, [
        ("histogram_quantile(0.95, sum by (host, model, le) (rate(edgeml_inference_duration_seconds_bucket"
         f'{_SELECTED[:-1]}, stage="total"}}[$__rate_interval])))', "{{host}} {{model}}"),
        (f'max by (model) (edgeml_model_objective_seconds{_SELECTED[:-1]}, percentile="p95"}})',
         "objective {{model}}")]),
    ("Measured p95 as a share of its objective", "timeseries", "percentunit", 12, 9, [
        (f'edgeml_model_latency_seconds{_SELECTED[:-1]}, percentile="p95"}} / edgeml_model_objective_seconds',
         "{{host}} {{model}}")]),
    ("Requests a second", "timeseries", "reqps", 12, 9, [
        (f"sum by (model, protocol) (rate(edgeml_inference_requests_total{_SELECTED}[$__rate_interval]))",
         "{{model}} {{protocol}}")]),
    ("Requests by answer", "timeseries", "reqps", 12, 9, [
        (f"sum by (protocol, code) (rate(edgeml_inference_requests_total{_SELECTED}[$__rate_interval]))",
         "{{protocol}} {{code}}")]),
    ("Requests under way", "timeseries", "none", 12, 9, [
        (f"sum by (host, model) (edgeml_inference_under_way{_SELECTED})", "{{host}} {{model}}")]),
    ("Memory of the runtimes", "timeseries", "bytes", 12, 9, [
        (f"process_resident_memory_bytes{_SELECTED}", "{{host}} {{runtime}}")]),
    ("Serial of the mirrors and of the lock", "timeseries", "none", 12, 9, [
        ('edgeml_mirror_serial{FLEET, site=~"$site"}', "{{host}}"), ("edgeml_lock_serial{FLEET}", "lock")]),
    ("Certificates", "timeseries", "s", 12, 9, [
        (f"edgeml_certificate_not_after_timestamp_seconds{_SELECTED} - time()", "{{host}} {{certificate}}")]),
)  # fmt: skip


def dashboard(report: Mapping[str, Any]) -> str:
    """Return the dashboard of the fleet as JSON, to be imported or provisioned."""
    fleet = f"fleet={label_value(report['fleet'])}"
    panels: list[dict[str, Any]] = []
    column = row = height = 0
    for number, (title, kind, unit, width, tall, queries) in enumerate(_PANELS, start=1):
        if column + width > _WIDTH:
            column, row, height = 0, row + height, 0
        panels.append(
            {
                "id": number,
                "title": title,
                "type": kind,
                "datasource": _SOURCE,
                "gridPos": {"x": column, "y": row, "w": width, "h": tall},
                "fieldConfig": {"defaults": {"unit": unit}, "overrides": []},
                **({"transformations": [_READABLE]} if kind == "table" else {}),
                "targets": [
                    {
                        "refId": chr(ord("A") + index),
                        "datasource": _SOURCE,
                        "expr": expression.replace("FLEET", fleet),
                        **(
                            {"format": "table", "instant": True}
                            if kind == "table"
                            else {"legendFormat": legend, "instant": kind == "stat"}
                        ),
                    }
                    for index, (expression, legend) in enumerate(queries)
                ],
            }
        )
        column, height = column + width, max(height, tall)
    name = hashlib.sha256(str(report["fleet"]).encode()).hexdigest()[:12]
    document = {
        "uid": f"edgeml-{name}",
        "title": f"Fleet {report['fleet']}",
        "tags": ["edgeml.fleet"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "1m",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {
            "list": [
                {"name": "source", "label": "Prometheus", "type": "datasource", "query": "prometheus"},
                _choice("site", f"label_values(edgeml_host_info{{{fleet}}}, site)"),
                _choice("host", f'label_values(edgeml_host_info{{{fleet}, site=~"$site"}}, host)'),
            ]
        },
        "panels": panels,
    }
    return json.dumps(document, indent=2) + "\n"


def _choice(name: str, query: str) -> dict[str, Any]:
    return {
        "name": name,
        "label": name.capitalize(),
        "type": "query",
        "datasource": _SOURCE,
        "definition": query,
        "query": {"query": query, "refId": "StandardVariableQuery"},
        "refresh": 2,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }


_READABLE = {
    "id": "organize",
    "options": {"excludeByName": dict.fromkeys(("Time", "Value", "__name__", "instance", "job", "fleet"), True)},
}
