# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The report for Prometheus: metrics as a textfile of node_exporter, targets for file_sd, alert rules.

The rules join the report's metrics with those of the runtimes by the labels fleet, site and host, which the targets
carry.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from ansible_collections.edgeml.fleet.plugins.plugin_utils.releases.resolve import PERCENTILES
from ansible_collections.edgeml.fleet.plugins.plugin_utils.reports.fleet import STATES

#: Name and help of each metric, in the order of the file. All are gauges: each report replaces the one before.
METRICS = {
    "edgeml_report_timestamp_seconds": "When the report was made.",
    "edgeml_lock_serial": "Serial of the lock that the fleet is meant to have.",
    "edgeml_mirror_serial": "Serial of the lock whose content a mirror serves.",
    "edgeml_mirror_current": "1 if a mirror serves what the lock says, else 0.",
    "edgeml_host_info": "Always 1; the labels describe the host.",
    "edgeml_host_state": "1 for the state that a host is in, 0 for the others.",
    "edgeml_host_pending": "1 while a host lacks its release, because it waits for a run or cannot be reached, else 0.",
    "edgeml_host_pending_since_timestamp_seconds": "Since when the ledger knows that a host lacks its release.",
    "edgeml_host_drifts": "How many things on a host differ from what its last converge left there.",
    "edgeml_runtime_release_info": "Always 1; the labels tell the active release of a runtime.",
    "edgeml_runtime_release_since_timestamp_seconds": "When the active release of a runtime became active.",
    "edgeml_runtime_release_serving": "1 if the active release of a runtime serves, else 0.",
    "edgeml_runtime_refused_releases": "How many releases a runtime refuses until they change or are forced.",
    "edgeml_placed_model_info": "Always 1; the labels tell which models are in the active release.",
    "edgeml_model_objective_seconds": "Latency that a model is allowed at a percentile.",
    "edgeml_model_latency_seconds": "Latency of a model at a percentile, as the last check measured it.",
    "edgeml_certificate_not_after_timestamp_seconds": "When a certificate ends.",
}
#: The alert rules of every fleet; FLEET stands for the label that selects one.
_ALERTS = Path(__file__).with_name("alerts.yml")


Sample = tuple[str, dict[str, str], float]


def metrics(report: Mapping[str, Any]) -> str:
    """Return the report in Prometheus' text format 0.0.4, with HELP and TYPE of each metric that it has."""
    lines: dict[str, list[str]] = {name: [] for name in METRICS}
    fleet = f'fleet="{_escaped(report["fleet"])}"'
    for name, labels, value in _samples(report):
        told = ",".join([fleet, *(f'{key}="{_escaped(text)}"' for key, text in labels.items())])
        lines[name].append(f"{name}{{{told}}} {_number(value)}")
    return "".join(
        f"# HELP {name} {METRICS[name]}\n# TYPE {name} gauge\n" + "\n".join(found) + "\n"
        for name, found in lines.items()
        if found
    )


def targets(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the runtimes' metrics ports for file_sd, one entry for each runtime."""
    return [
        {
            "targets": [target["address"]],
            "labels": {
                "fleet": report["fleet"],
                "site": host["site"],
                "host": host["name"],
                "runtime": target["runtime"],
                "__scheme__": target["scheme"],
            },
        }
        for host in report["hosts"]
        for target in host["targets"]
    ]


def rules(report: Mapping[str, Any]) -> str:
    """Return the alert rules of the fleet as YAML, for rule_files of Prometheus."""
    fleet = f"fleet={label_value(report['fleet'])}"
    alerts = yaml.safe_load(_ALERTS.read_text(encoding="utf-8"))
    for alert in alerts:
        alert["expr"] = alert["expr"].rstrip("\n").replace("FLEET", fleet)
    head = "# Written by edgeml.fleet.report: the next report overwrites changes.\n"
    group = {"name": f"edgeml.fleet {report['fleet']}", "rules": alerts}
    return head + yaml.safe_dump({"groups": [group]}, sort_keys=False, width=120, allow_unicode=True)


def _samples(report: Mapping[str, Any]) -> Iterator[Sample]:
    yield "edgeml_report_timestamp_seconds", {}, _seconds(report["generated"])
    if report["serial"] is not None:
        yield "edgeml_lock_serial", {}, report["serial"]
    for site in report["sites"]:
        for mirror in site["mirrors"]:
            of = {"site": site["name"], "host": mirror["host"]}
            if mirror["serial"] is not None:
                yield "edgeml_mirror_serial", of, mirror["serial"]
            if mirror["state"] != "unreachable":  # what an unreachable mirror serves is not known
                yield "edgeml_mirror_current", of, mirror["state"] == "current"
            yield from _certificate_samples(of, mirror["certificates"])
    for host in report["hosts"]:
        yield from _host_samples(host)


def _host_samples(host: Mapping[str, Any]) -> Iterator[Sample]:
    of = {"site": host["site"], "host": host["name"]}
    yield "edgeml_host_info", {**of, "architecture": host["architecture"]}, 1
    for state in STATES:
        yield "edgeml_host_state", {**of, "state": state}, host["state"] == state
    yield "edgeml_host_pending", of, host["state"] in ("pending", "unreachable")
    if host["pending_since"]:
        yield "edgeml_host_pending_since_timestamp_seconds", of, _seconds(host["pending_since"])
    if host["state"] != "unreachable":  # an unreachable host tells nothing: no sample is better than a guess
        yield "edgeml_host_drifts", of, len(host["drift"])
    for runtime in host["runtimes"]:
        yield from _runtime_samples({**of, "runtime": runtime["name"]}, runtime)
    yield from _certificate_samples(of, host["certificates"])


def _runtime_samples(of: dict[str, str], runtime: Mapping[str, Any]) -> Iterator[Sample]:
    if runtime["release"]:
        yield "edgeml_runtime_release_info", {**of, "release": runtime["release"]}, 1
    if runtime["since"]:
        yield "edgeml_runtime_release_since_timestamp_seconds", of, _seconds(runtime["since"])
    if runtime["serving"] is None:  # known from the ledger only
        return
    if runtime["release"]:
        yield "edgeml_runtime_release_serving", of, runtime["serving"]
    yield "edgeml_runtime_refused_releases", of, len(runtime["refused"])
    for model in runtime["models"]:
        identity = {key: model[key] for key in ("version", "variant", "digest")}
        yield "edgeml_placed_model_info", {**of, "model": model["name"], **identity}, 1
        judged = {**of, "model": model["name"], "protocol": model["protocol"]}
        for key in PERCENTILES:
            for name, figures in (("objective", model["objective"]), ("latency", model["measured"])):
                if key in figures:
                    yield (
                        f"edgeml_model_{name}_seconds",
                        {**judged, "percentile": key.removesuffix("_ms")},
                        figures[key] / 1000,
                    )


def _certificate_samples(of: dict[str, str], certificates: Sequence[Mapping[str, str]]) -> Iterator[Sample]:
    for certificate in certificates:
        labels = {**of, "certificate": certificate["name"]}
        yield "edgeml_certificate_not_after_timestamp_seconds", labels, _seconds(certificate["not_after"])


def _seconds(time: str) -> float:
    try:
        return datetime.strptime(time, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC).timestamp()
    except ValueError:  # a host or a ledger that was edited by hand
        return 0.0


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(round(value, 9))


def _escaped(text: object) -> str:
    return str(text).replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def label_value(text: str) -> str:
    """Return a string of PromQL, which has the escapes of Go and JSON alike."""
    return json.dumps(text, ensure_ascii=False)
