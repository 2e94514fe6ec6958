# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Variants from the recipe to the host: made, judged, locked, measured on a real engine, and chosen by the table."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.edgeml.fleet.plugins.module_utils._inference.connect import connect
from ansible_collections.edgeml.fleet.plugins.plugin_utils.placement.measured import as_text, read_table
from ansible_collections.edgeml.fleet.plugins.plugin_utils.rollout.window import DAYS
from ansible_collections.edgeml.fleet.runtime.tests.support.ports import free_port
from ansible_collections.edgeml.fleet.tests.integration.content.conftest import mirror, web_server  # noqa: F401
from ansible_collections.edgeml.fleet.tests.integration.publish.conftest import Project
from ansible_collections.edgeml.fleet.tests.integration.publish.test_minify import catalogue, model  # noqa: F401
from ansible_collections.edgeml.fleet.tests.support.content import SiteMirror, Store, run_module, take_built_layers
from ansible_collections.edgeml.fleet.tests.support.measuring import (
    TRIAL,
    Fleet,
    docker,
    measuring_fleet,
    module_below,
)

# Fixtures of neighbours are imported by name, as pytest finds them; those here ask for them by the same names.
pytestmark = pytest.mark.timeout(600)
RECIPES = ("int8_static", "fp16")
VARIANTS = {*RECIPES, "fp32"}
SERVING = TRIAL.removesuffix(".trial")


@pytest.fixture(scope="module")
def project(store: Store, other: Store, tmp_path_factory: pytest.TempPathFactory) -> Project:
    made = Project(tmp_path_factory.mktemp("measure"), store, other)
    take_built_layers(made.root / "build/images")
    return made


@pytest.fixture(scope="module")
def entry(model: Path) -> dict[str, Any]:  # noqa: F811
    made = [{"name": name, "minify": {"recipe": name}} for name in RECIPES]
    variants = [*made, {"name": "fp32", "file": "model.onnx"}]
    return catalogue(model, runtime="measured", variant="best", variants=variants)[0]


@pytest.fixture
def fleet(project: Project, entry: dict[str, Any], mirror: SiteMirror, tmp_path: Path) -> Iterator[Fleet]:  # noqa: F811
    with measuring_fleet(project, [entry], mirror, tmp_path) as made:
        yield made


def another_day() -> str:
    """Return a day of the week that is neither today nor a neighbour of it."""
    return DAYS[(datetime.now(UTC).weekday() + 3) % 7]


def test_best_is_what_was_measured_on_this_kind_of_host(fleet: Fleet) -> None:
    assert fleet.variant() == "fp32", "nobody has measured"
    run = fleet.run({"samples": 20, "seconds": 0.5})
    assert run.code == 0, run.output
    rows = read_table(fleet.table)
    assert {row["variant"] for row in rows} == VARIANTS and len({row["kind"] for row in rows}) == 1
    for row in rows:
        assert "failure" not in row, row
        assert 0 < row["p50_ms"] <= row["p95_ms"] <= row["p99_ms"] and row["throughput"] > 0
        assert row["memory_mb"] > 20 and row["cold_start_s"] > 0 and row["golden_passed"] == row["golden_cases"] == 8
    sizes = {row["variant"]: row["bytes"] for row in rows}
    losses = {row["variant"]: row["deviation"] for row in rows}
    assert max(sizes["int8_static"], sizes["fp16"]) < sizes["fp32"]
    assert losses["int8_static"] > losses["fp16"] > losses["fp32"]
    assert fleet.variant() == min(rows, key=lambda row: row["p95_ms"])["variant"]
    assert not docker("container", "ls", "--all", "--quiet", "--filter", f"name={TRIAL}")
    assert not list(fleet.state.glob("**/trial"))
    assert {path.name for path in fleet.report.iterdir()} == {"measurements.md", "spots-1.0.0.svg"}
    assert "accuracy on labelled examples" in (fleet.report / "spots-1.0.0.svg").read_text()

    # What publish found on labelled examples.
    published = yaml.safe_load(fleet.lock_file.read_text())["models"]["spots"]["1.0.0"]["variants"]
    assert published["fp16"]["accuracy"] == published["fp32"]["accuracy"] > published["int8_static"]["accuracy"]
    fleet.let_first("accuracy")
    for fast in ("fp16", "fp32", "int8_static"):
        fleet.table.write_text(as_text({**row, "p95_ms": 0.001 if row["variant"] == fast else 9.0} for row in rows))
        wanted = fast if fast != "int8_static" else "fp16"
        assert fleet.variant() == wanted, "the most accurate, of these the fastest, of these the first"
    fleet.let_first("latency")

    for variant in VARIANTS:
        fleet.table.write_text(as_text({**row, "p95_ms": 0.001 if row["variant"] == variant else 9.0} for row in rows))
        assert fleet.variant() == variant, "the table decides"

    told = fleet.run({"samples": 20, "seconds": 0.5})
    assert told.code == 0 and "spots 1.0.0 has been measured on" in told.output, told.output
    assert {row["p95_ms"] for row in read_table(fleet.table)} == {0.001, 9.0}, "what is known is not measured again"
    closed = fleet.run({"again": True, "window": {"days": [another_day()], "from": "10:00", "to": "10:01"}})
    assert closed.code == 0 and "Nothing is measured: the window of edgeml_measure opens at" in closed.output

    # What a run that was killed has left, the next one clears.
    (fleet.state / "runtimes/measured/trial/models/half").mkdir(parents=True)
    lock = yaml.safe_load(fleet.lock_file.read_text())
    image = lock["images"]["measured"]
    name = f"{lock['registry']}/{image['repository']}@{image['platforms']['amd64']['digest']}"
    assert docker("container", "create", "--name", TRIAL, name)
    again = fleet.run({"again": True, "samples": 5, "seconds": 0.2})
    assert again.code == 0, again.output
    assert max(row["samples"] for row in read_table(fleet.table)) == 5
    assert not docker("container", "ls", "--all", "--quiet", "--filter", f"name={TRIAL}")
    assert not list(fleet.state.glob("**/trial"))


def release(fleet: Fleet, site: SiteMirror, port: int) -> dict[str, Any]:
    """Return the options of a release of the device: one variant, at a port of this machine."""
    lock = yaml.safe_load(fleet.lock_file.read_text())
    image, entry = lock["images"]["measured"], lock["models"]["spots"]["1.0.0"]["variants"]["fp32"]
    private = {protocol: [f"unix:/run/edgeml/{protocol}.sock"] for protocol in ("rest", "grpc")}
    return {
        "root": str(fleet.state),
        "name": "measured",
        "image": f"{site.address}/{image['repository']}@{image['platforms']['amd64']['digest']}",
        "models": [
            {
                "name": "spots",
                "version": "1.0.0",
                "variant": "fp32",
                "repository": entry["repository"],
                "digest": entry["blob"]["digest"],
                "size": entry["blob"]["size"],
                "golden_cases": entry["golden_cases"],
            }
        ],
        "configuration": {"listen": {**private, "rest": [f"127.0.0.1:{port}", *private["rest"]]}},
        "signatures": {"mode": "ignored"},
        "ca_file": str(site.ca_file),
    }


def wait_until(holds: Callable[[], object], process: subprocess.Popen[str]) -> None:
    """Wait for something that `process` does, which must not end before."""
    while not holds():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)


def test_what_a_trial_that_was_killed_leaves_goes_with_the_next_run(fleet: Fleet, mirror: SiteMirror) -> None:  # noqa: F811
    port = free_port()
    serving = release(fleet, mirror, port)
    state = fleet.state / "runtimes/measured"
    facts = "{{.Id}} {{.State.StartedAt}} {{.State.Running}} {{.RestartCount}}"
    kept = ("state.json", "models", "releases", "run", "cache")

    def content() -> list[Path]:
        return sorted(path for name in kept for path in [state / name, *(state / name).rglob("*")])

    assert run_module("runtime_release", serving, interpreter=sys.executable)["changed"]
    try:
        before = docker("container", "inspect", "--format", facts, SERVING), content()
        assert before[0] and (state / "state.json") in before[1]
        with fleet.start({"samples": 1_000_000, "seconds": 600}) as measuring:
            try:
                running = ("container", "ls", "--quiet", "--filter", f"name={TRIAL}", "--filter", "status=running")
                wait_until(lambda: docker(*running), measuring)
                process = module_below(measuring.pid, "variant_measurement")
                assert process
                os.kill(process, signal.SIGKILL)
                output = measuring.communicate()[0]
            finally:
                measuring.kill()
        assert measuring.returncode and "Not all was measured" in output, output
        assert docker(*running) and (state / "trial/run").is_dir(), "it was killed in the middle"

        again = fleet.run({"samples": 5, "seconds": 0.2})
        assert again.code == 0, again.output
        assert {row["variant"] for row in read_table(fleet.table)} == VARIANTS
        assert not docker("container", "ls", "--all", "--quiet", "--filter", f"name={TRIAL}")
        assert not list(fleet.state.glob("**/trial"))
        assert (docker("container", "inspect", "--format", facts, SERVING), content()) == before
        with connect(f"http://127.0.0.1:{port}") as client:
            assert client.model_ready("spots", "1.0.0")
    finally:
        run_module("runtime_release", {**serving, "state": "absent"}, interpreter=sys.executable)
