# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Metrics, targets, rules and dashboard of the report; tests/integration/report gives them to a real Prometheus."""

from __future__ import annotations

import json
import re
from typing import Any

import yaml
from ansible_collections.edgeml.fleet.plugins.plugin_utils.reports.dashboard import dashboard
from ansible_collections.edgeml.fleet.plugins.plugin_utils.reports.fleet import collect
from ansible_collections.edgeml.fleet.plugins.plugin_utils.reports.prometheus import METRICS, metrics, rules, targets
from ansible_collections.edgeml.fleet.tests.support.reported_fleet import NOW, device, ledger, small
from prometheus_client.parser import text_string_to_metric_families


def report(hosts: dict[str, dict[str, Any]], fleet: str = "example") -> dict[str, Any]:
    return collect(hosts, list(hosts), fleet, ledger(), NOW)


def samples(text: str) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    return {
        family.name: {tuple(sorted(sample.labels.items())): sample.value for sample in family.samples}
        for family in text_string_to_metric_families(text)
    }


def value(found: Any, name: str, **labels: str) -> float:
    (one,) = [number for key, number in found[name].items() if {*labels.items(), ("fleet", "example")} <= set(key)]
    return float(one)


def test_metrics_tell_what_the_report_tells() -> None:
    found = samples(metrics(report(small())))
    assert set(found) == set(METRICS)
    assert value(found, "edgeml_report_timestamp_seconds") == NOW.timestamp()
    assert value(found, "edgeml_lock_serial") == 7
    assert value(found, "edgeml_mirror_serial", site="lyon", host="lyon-mirror") == 6
    assert value(found, "edgeml_mirror_current", host="lyon-mirror") == 0
    assert value(found, "edgeml_host_state", host="berlin-camera-2", state="failed") == 1
    assert value(found, "edgeml_host_state", host="berlin-camera-2", state="current") == 0
    assert value(found, "edgeml_host_pending", host="lyon-camera-1") == 1
    assert value(found, "edgeml_host_pending_since_timestamp_seconds", host="lyon-camera-1") == 1795586400
    assert value(found, "edgeml_host_drifts", host="berlin-gateway-1") == 2
    assert value(found, "edgeml_runtime_release_serving", host="berlin-gateway-1") == 0
    assert value(found, "edgeml_runtime_refused_releases", host="berlin-camera-2") == 1
    of = {"host": "berlin-camera-1", "model": "digits", "protocol": "grpc", "percentile": "p95"}
    assert value(found, "edgeml_model_objective_seconds", **of) == 0.005
    assert value(found, "edgeml_model_latency_seconds", **of) == 0.007
    assert value(found, "edgeml_certificate_not_after_timestamp_seconds", host="lyon-camera-2",
                 certificate="server") == NOW.timestamp() + 12 * 86400 + 3600  # fmt: skip


def test_what_an_unreachable_host_would_say_is_left_out() -> None:
    found = samples(metrics(report({"lyon-camera-1": device("lyon", "unreachable")})))
    assert "edgeml_host_drifts" not in found
    assert "edgeml_runtime_release_serving" not in found
    assert value(found, "edgeml_runtime_release_since_timestamp_seconds", host="lyon-camera-1")


def test_labels_are_escaped() -> None:
    name = 'a"b\\c\nd} 1'
    found = samples(metrics(report({name: device(name)}, 'fl"eet')))
    assert (("fleet", 'fl"eet'), ("host", name), ("site", name)) in found["edgeml_host_pending"]


def test_time_that_a_host_made_up_breaks_nothing() -> None:
    variables = device("berlin")
    variables["edgeml_report_releases"]["runtimes"][0]["since"] = "yesterday"
    found = samples(metrics(report({"host": variables})))
    assert value(found, "edgeml_runtime_release_since_timestamp_seconds", host="host") == 0


def test_targets_carry_the_labels_that_rules_join_on() -> None:
    entry = next(one for one in targets(report(small())) if one["labels"]["host"] == "berlin-camera-1")
    assert entry == {
        "targets": ["192.0.2.10:8002"],
        "labels": {
            "fleet": "example", "site": "berlin", "host": "berlin-camera-1", "runtime": "runtime",
            "__scheme__": "https",
        },
    }  # fmt: skip


def test_rules_use_metrics_that_exist_and_say_the_next_step() -> None:
    (group,) = yaml.safe_load(rules(report(small(), 'x"{{ y }}')))["groups"]
    runtime = {"edgeml_inference_duration_seconds_bucket"}
    assert {rule["alert"] for rule in group["rules"]} == {
        "EdgemlHostPending", "EdgemlReleaseRefused", "EdgemlHostDrifted", "EdgemlObjectiveMissed",
        "EdgemlCertificateEnds", "EdgemlMirrorBehind", "EdgemlRuntimeDown", "EdgemlReportOld",
    }  # fmt: skip
    for rule in group["rules"]:
        assert set(re.findall(r"\bedgeml_\w+", rule["expr"])) <= {*METRICS, *runtime}
        assert 'fleet="x\\"{{ y }}"' in rule["expr"]
        assert rule["annotations"]["summary"] and "ansible-playbook edgeml.fleet." in rule["annotations"]["description"]
        assert "y }}" not in str(rule["annotations"])


def test_dashboard_asks_for_metrics_that_exist() -> None:
    document = json.loads(dashboard(report(small())))
    runtime = {"edgeml_inference_duration_seconds_bucket", "edgeml_inference_requests_total",
               "edgeml_inference_under_way"}  # fmt: skip
    for panel in document["panels"]:
        for target in panel["targets"]:
            assert set(re.findall(r"\bedgeml_\w+", target["expr"])) <= {*METRICS, *runtime}
            assert 'fleet="example"' in target["expr"]
    boxes = [panel["gridPos"] for panel in document["panels"]]
    cells = [(box["x"] + x, box["y"] + y) for box in boxes for x in range(box["w"]) for y in range(box["h"])]
    assert len(cells) == len(set(cells))
    assert {panel["id"] for panel in document["panels"]} == set(range(1, len(boxes) + 1))
