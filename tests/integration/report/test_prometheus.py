# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the report writes for Prometheus, given to Debian's Prometheus and node_exporter, with a real runtime."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.edgeml.fleet.runtime.tests.support.ports import free_ports
from ansible_collections.edgeml.fleet.tests.contract.conftest import models  # noqa: F401
from ansible_collections.edgeml.fleet.tests.support.reported_fleet import NOW, device, large, ledger, small

from .conftest import write

REPOSITORY = Path(__file__).resolve().parents[3]
DAY = 86400


def promtool(programs: Path, *arguments: str | Path, text: str | None = None) -> str:
    done = subprocess.run([programs / "promtool", *arguments], input=text, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("fleet", [small, large], ids=["5 hosts", "2,000 hosts"])
def test_files_are_what_prometheus_takes(prometheus: Path, tmp_path: Path, fleet: Callable[[], Any]) -> None:
    write(tmp_path, fleet(), ledger(), NOW)
    assert "8 rules found" in promtool(prometheus, "check", "rules", tmp_path / "alerts.yml")
    # Linted too: names, units, help.
    assert promtool(prometheus, "check", "metrics", text=(tmp_path / "report.prom").read_text()) == ""
    configuration = {
        "rule_files": [str(tmp_path / "alerts.yml")],
        "scrape_configs": [{"job_name": "edgeml", "file_sd_configs": [{"files": [str(tmp_path / "targets.json")]}]}],
    }
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(configuration))
    assert "SUCCESS" in promtool(prometheus, "check", "config", tmp_path / "prometheus.yml")


#: Alert, series as Prometheus' unit tests write them, minutes at which nobody is told, and at which somebody is.
ALERTS: dict[str, tuple[str, dict[str, str], str, str]] = {
    "EdgemlHostPending": ("edgeml_host_pending", {}, "1x3000", "1439 1441"),
    "EdgemlReleaseRefused": ("edgeml_host_state", {"state": "failed"}, "0x9 1x100", "5 15"),
    "EdgemlHostDrifted": ("edgeml_host_drifts", {}, "0x9 2x100", "5 15"),
    "EdgemlCertificateEnds": (
        "edgeml_certificate_not_after_timestamp_seconds", {"certificate": "server"}, f"{31 * DAY}x3000", "1400 1500",
    ),
    "EdgemlMirrorBehind": ("edgeml_mirror_current", {}, "1x9 0x100", "65 75"),
    "EdgemlRuntimeDown": ("up", {"runtime": "runtime", "instance": "192.0.2.1:8002"}, "1x9 0x100", "14 16"),
    "EdgemlReportOld": ("edgeml_report_timestamp_seconds", {}, "0x3000", "2879 2881"),
}  # fmt: skip


@pytest.mark.parametrize("alert", ALERTS)
def test_alert_fires_when_it_should_and_not_before(prometheus: Path, tmp_path: Path, alert: str) -> None:
    write(tmp_path, small(), ledger(), NOW)
    name, more, values, minutes = ALERTS[alert]
    labels = {"fleet": "example", "site": "berlin", "host": "camera", **more}
    series = [{"series": written(name, labels), "values": values}]
    series += [{"series": written(name, {**labels, "fleet": "another"}), "values": values}]
    early, late = minutes.split()
    assert firing(prometheus, tmp_path, series, early, alert, []) == "SUCCESS"
    assert firing(prometheus, tmp_path, series, late, alert, [labels]) == "SUCCESS"


def test_pending_since_is_taken_from_the_ledger(prometheus: Path, tmp_path: Path) -> None:
    """The first report knows at once that a host has been waiting for days."""
    write(tmp_path, small(), ledger(), NOW)
    labels = {"fleet": "example", "site": "lyon", "host": "lyon-camera-1"}
    series = [
        {"series": written("edgeml_host_pending", labels), "values": "_x1445 1x10"},
        {"series": written("edgeml_host_pending_since_timestamp_seconds", labels), "values": "_x1445 0x10"},
    ]
    assert firing(prometheus, tmp_path, series, "1448", "EdgemlHostPending", [labels]) == "SUCCESS"


def written(name: str, labels: dict[str, str]) -> str:
    told = ",".join(f'{key}="{value}"' for key, value in labels.items())
    return f"{name}{{{told}}}"


def firing(
    programs: Path, directory: Path, series: list[dict[str, str]], minute: str, alert: str, expected: list[Any]
) -> str:
    """Return SUCCESS if, at that minute of these series, the alert fires for the expected labels and no others."""
    (group,) = yaml.safe_load((directory / "alerts.yml").read_text())["groups"]
    (severity,) = [rule["labels"]["severity"] for rule in group["rules"] if rule["alert"] == alert]
    state = {"alertname": alert, "alertstate": "firing"}
    samples = [
        {"labels": written("ALERTS", {**labels, **state, "severity": severity}), "value": 1} for labels in expected
    ]
    asked = {"expr": written("ALERTS", state), "eval_time": f"{minute}m", "exp_samples": samples}
    test = {
        "rule_files": ["alerts.yml"],
        "evaluation_interval": "1m",
        "tests": [{"interval": "1m", "input_series": series, "promql_expr_test": [asked]}],
    }
    path = directory / "test.yml"
    path.write_text(yaml.safe_dump(test))
    done = subprocess.run([programs / "promtool", "test", "rules", path], capture_output=True, text=True)
    return "SUCCESS" if done.returncode == 0 else done.stdout + done.stderr


@contextlib.contextmanager
def running(*command: str | Path, **environment: str) -> Iterator[None]:
    process = subprocess.Popen(
        [str(part) for part in command], env={**os.environ, **environment}, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield
    finally:
        process.terminate()
        process.wait(240)


def answer(address: str, path: str, data: bytes | None = None) -> bytes:
    request = urllib.request.Request(f"http://{address}{path}", data, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as response:
        return bytes(response.read())


def wait_until(condition: Callable[[], Any], what: str) -> Any:
    """Return what `condition` returns once that is something."""
    end = time.monotonic() + 240
    while time.monotonic() < end:
        with contextlib.suppress(OSError, urllib.error.URLError):
            if found := condition():
                return found
        time.sleep(0.2)
    raise AssertionError(f"not within two minutes: {what}")


@pytest.fixture(scope="module")
def scraped(
    prometheus: Path,
    tmp_path_factory: pytest.TempPathFactory,
    models: Path,  # noqa: F811
) -> Iterator[Callable[[str], Any]]:
    """Run a runtime that serves `scores`, node_exporter and Prometheus as docs/report.md says; return a query."""
    tmp_path = tmp_path_factory.mktemp("prometheus")
    rest, metrics, node, server = (f"127.0.0.1:{port}" for port in free_ports(4))
    (tmp_path / "runtime.json").write_text(
        json.dumps(
            {
                "listen": {"rest": [rest], "grpc": [], "metrics": [metrics]},
                "models": [
                    {
                        "name": "scores",
                        "version": "1.0.0",
                        "digest": "sha256:" + "0" * 64,
                        "path": str(models / "scores"),
                    }
                ],
            }
        )
    )
    hosts = small()
    fast = device("berlin", models=("digits",))
    (runtime,) = fast["edgeml_report_expected"]["runtimes"]
    (told,) = fast["edgeml_report_releases"]["runtimes"]
    runtime |= {"metrics": [metrics], "tls": False}
    # What no request can meet.
    runtime["models"][0] |= {"name": "scores", "objective": {"p95_ms": 0.000001}}
    told["active"]["models"][0]["name"] = "scores"
    hosts["here"] = {**fast, "ansible_connection": "local"}
    directory = tmp_path / "report"
    write(directory, hosts, ledger())
    (tmp_path / "prometheus.yml").write_text(
        yaml.safe_dump(
            {
                "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
                "rule_files": [str(directory / "alerts.yml")],
                "scrape_configs": [
                    {"job_name": "edgeml", "file_sd_configs": [{"files": [str(directory / "targets.json")]}],
                     "scrape_timeout": "1s"},
                    {"job_name": "node", "static_configs": [{"targets": [node]}]},
                ],
            }
        )
    )  # fmt: skip

    def query(expression: str) -> Any:
        found = json.loads(answer(server, f"/api/v1/query?{urllib.parse.urlencode({'query': expression})}"))
        return [(one["metric"], float(one["value"][1])) for one in found["data"]["result"]]

    with contextlib.ExitStack() as stack:
        stack.enter_context(
            running(sys.executable, "-m", "edgeml_runtime", "serve", "--config", tmp_path / "runtime.json",
                    PYTHONPATH=str(REPOSITORY / "runtime" / "src"))
        )  # fmt: skip
        stack.enter_context(
            running(prometheus / "prometheus-node-exporter", f"--web.listen-address={node}",
                    "--collector.disable-defaults", "--collector.textfile",
                    f"--collector.textfile.directory={directory}")
        )  # fmt: skip
        stack.enter_context(
            running(prometheus / "prometheus", f"--config.file={tmp_path / 'prometheus.yml'}",
                    f"--storage.tsdb.path={tmp_path / 'tsdb'}", f"--web.listen-address={server}")
        )  # fmt: skip
        wait_until(lambda: answer(rest, "/v2/health/ready") or True, "the runtime is ready")
        case = (models / "scores" / "golden" / "dog.json").read_bytes()
        body = json.dumps({"inputs": json.loads(case)["inputs"]}).encode()
        # A rate needs two scrapes with requests before and between them.
        wait_until(
            lambda: (
                [answer(rest, "/v2/models/scores/infer", body) for _ in range(20)]
                and query("rate(edgeml_inference_duration_seconds_count{stage='total', model='scores'}[5m]) > 0")
            ),
            "requests are seen",
        )
        wait_until(lambda: query("edgeml_host_info"), "the report is seen")
        yield query


def test_prometheus_sees_the_fleet_and_raises_alerts(scraped: Callable[[str], Any]) -> None:
    ((up, _),) = wait_until(lambda: scraped('up{host="here", fleet="example"} == 1'), "the runtime is scraped")
    assert (up["site"], up["runtime"]) == ("berlin", "runtime")
    assert scraped("node_textfile_scrape_error")[0][1] == 0
    assert len(scraped("edgeml_host_info")) == 6
    ((_, serial),) = scraped("edgeml_lock_serial")
    assert serial == 7
    for alert, state, host in (
        ("EdgemlReleaseRefused", "firing", "berlin-camera-2"),
        ("EdgemlHostDrifted", "firing", "berlin-gateway-1"),
        ("EdgemlMirrorBehind", "pending", "lyon-mirror"),
        ("EdgemlHostPending", "firing", "lyon-camera-1"),
        ("EdgemlRuntimeDown", "pending", "berlin-camera-1"),
        ("EdgemlObjectiveMissed", "pending", "here"),
    ):
        alerts = f'ALERTS{{alertname="{alert}", alertstate="{state}", host="{host}"}}'
        wait_until(functools.partial(scraped, alerts), alerts)
    ((missed, _),) = scraped('ALERTS{alertname="EdgemlObjectiveMissed"}')
    assert (missed["model"], missed["percentile"], missed["site"]) == ("scores", "p95", "berlin")


def test_every_query_of_the_dashboard_finds_something(scraped: Callable[[str], Any], tmp_path: Path) -> None:
    write(tmp_path, small(), ledger(), NOW)
    document = json.loads((tmp_path / "dashboard.json").read_text())
    found = {}
    for panel in document["panels"]:
        for target in panel["targets"]:
            expression = target["expr"].replace("$__rate_interval", "1m").replace("$site", ".*").replace("$host", ".*")
            found[expression] = wait_until(functools.partial(scraped, expression), expression)
    assert len(found) >= len(document["panels"])
