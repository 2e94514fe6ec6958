# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Variants from the recipe to the host: made, judged, locked, measured on a real engine, and chosen by the table."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.edgeml.fleet.plugins.plugin_utils.placement.measured import as_text, read_table
from ansible_collections.edgeml.fleet.plugins.plugin_utils.rollout.window import DAYS
from ansible_collections.edgeml.fleet.tests.integration.content.conftest import mirror, web_server  # noqa: F401
from ansible_collections.edgeml.fleet.tests.integration.publish.conftest import Project, Run
from ansible_collections.edgeml.fleet.tests.integration.publish.test_minify import catalogue, model  # noqa: F401
from ansible_collections.edgeml.fleet.tests.support.content import (
    REPOSITORY_ROOT,
    SiteMirror,
    Store,
    run_module,
    take_built_layers,
)

# Fixtures of neighbours are imported by name, as pytest finds them; those here ask for them by the same names.
pytestmark = pytest.mark.timeout(600)
BIN = Path(sys.executable).parent
TRIAL = "edgeml-runtime-measured.trial"
RECIPES = ("int8_static", "fp16")
VARIANTS = {*RECIPES, "fp32"}
RUNTIMES = [{"name": "measured", "recipe": str(REPOSITORY_ROOT / "runtime/image/image.yml"),
             "source_root": str(REPOSITORY_ROOT)}]  # fmt: skip


class Fleet:
    """An inventory of one device, this machine, which trusts the mirror."""

    def __init__(self, root: Path, project: Project) -> None:
        self.root = root
        self.lock_file = project.lock_file
        self.table = root / "fleet.measurements.jsonl"
        self.report = root / "report"
        self.state = Path(tempfile.mkdtemp(prefix="edgeml-", dir="/var/tmp"))  # the path of a socket is short

    def run(self, settings: dict[str, Any]) -> Run:
        variables = {
            "ansible_python_interpreter": sys.executable,
            "edgeml_lock_file": str(self.lock_file),
            "edgeml_measurements_file": str(self.table),
            "edgeml_measure_report": str(self.report),
            "edgeml_measure": settings,
            "edgeml_signatures": "ignored",
            "inference_runtime_directory": str(self.state),
            "inference_runtime_start_timeout": 120,
        }
        command = [str(BIN / "ansible-playbook"), "-i", str(self.root / "fleet"), "edgeml.fleet.measure"]
        command += ["--extra-vars", json.dumps(variables)]
        environment = {**os.environ, "ANSIBLE_NOCOLOR": "1"}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        return Run(done.returncode, done.stdout + done.stderr)

    def variant(self) -> str:
        """Return the variant that the inventory gives the device."""
        command = [str(BIN / "ansible-inventory"), "-i", str(self.root / "fleet"), "--host", "device"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return str(json.loads(done.stdout)["edgeml_placed"][0].split()[2])


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
    """Publish, fill a mirror, and have this machine as a device of it."""
    project.describe([entry], RUNTIMES)
    run = project.publish(edgeml_registry=mirror.address, edgeml_architectures=["amd64"])
    assert run.code == 0, run.output
    arguments = {
        "root": str(mirror.root),
        "lock": project.lock(),
        "store": project.store.options(),
        "architectures": ["amd64"],
        "signatures": {"mode": "ignored"},
    }
    run_module("mirror_sync", arguments, interpreter=sys.executable)
    facts = run_module("host_preflight", {"refuse": False}, interpreter=sys.executable)["ansible_facts"]["edgeml_host"]
    (tmp_path / "fleet").mkdir()
    device = {"ansible_connection": "local", **{f"edgeml_{key}": value for key, value in facts.items()}}
    (tmp_path / "fleet/10-hosts.yml").write_text(yaml.safe_dump({"devices": {"hosts": {"device": device}}}))
    placement = {
        "plugin": "edgeml.fleet.placement",
        "runtimes": RUNTIMES,
        "catalogue": [entry],
        "placement": [{"models": ["spots"], "hosts": "devices"}],
        "lock_file": str(project.lock_file),
    }
    (tmp_path / "fleet/20-placement.yml").write_text(yaml.safe_dump(placement))
    trust = Path("/etc/docker/certs.d") / mirror.address
    trust.mkdir(parents=True)
    shutil.copy(mirror.ca_file, trust / "ca.crt")
    made = Fleet(tmp_path, project)
    yield made
    shutil.rmtree(made.state)
    shutil.rmtree(trust)
    docker("container", "rm", "--force", TRIAL)
    for image in docker("image", "ls", "--quiet", f"{mirror.address}/edgeml/measured").split():
        docker("image", "rm", "--force", image)


def another_day() -> str:
    """Return a day of the week that is neither today nor a neighbour of it."""
    return DAYS[(datetime.now(UTC).weekday() + 3) % 7]


def docker(*arguments: str) -> str:
    return subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False).stdout


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
