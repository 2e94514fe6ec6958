# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""This machine as the one device of a fleet that measures variants: published, in a mirror, on a real engine."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from ansible_collections.edgeml.fleet.tests.integration.publish.conftest import Project, Run
from ansible_collections.edgeml.fleet.tests.support.content import REPOSITORY_ROOT, SiteMirror, run_module

BIN = Path(sys.executable).parent
TRIAL = "edgeml-runtime-measured.trial"
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
        """Measure, and wait for the end."""
        with self.start(settings) as process:
            output = process.communicate()[0]
        return Run(process.returncode, output)

    def start(self, settings: dict[str, Any]) -> subprocess.Popen[str]:
        """Begin to measure."""
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
        # A module that is not piped to its interpreter can be told by the name of its process.
        environment = {**os.environ, "ANSIBLE_NOCOLOR": "1", "ANSIBLE_PIPELINING": "0"}
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)

    def let_first(self, first: str) -> None:
        """Let this decide which variant of each model is the best."""
        file = self.root / "fleet/20-placement.yml"
        placement = yaml.safe_load(file.read_text())
        for model in placement["catalogue"]:
            model["slo"] = {"first": first}
        file.write_text(yaml.safe_dump(placement, sort_keys=False))

    def variant(self) -> str:
        """Return the variant that the inventory gives the device."""
        command = [str(BIN / "ansible-inventory"), "-i", str(self.root / "fleet"), "--host", "device"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return str(json.loads(done.stdout)["edgeml_placed"][0].split()[2])


@contextlib.contextmanager
def measuring_fleet(
    project: Project, entries: list[dict[str, Any]], mirror: SiteMirror, directory: Path
) -> Iterator[Fleet]:
    """Publish, fill a mirror, and have this machine as a device of it."""
    project.describe(entries, RUNTIMES)
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
    (directory / "fleet").mkdir()
    device = {"ansible_connection": "local", **{f"edgeml_{key}": value for key, value in facts.items()}}
    (directory / "fleet/10-hosts.yml").write_text(yaml.safe_dump({"devices": {"hosts": {"device": device}}}))
    placement = {
        "plugin": "edgeml.fleet.placement",
        "runtimes": RUNTIMES,
        "catalogue": entries,
        "placement": [{"models": [entry["name"] for entry in entries], "hosts": "devices"}],
        "lock_file": str(project.lock_file),
    }
    (directory / "fleet/20-placement.yml").write_text(yaml.safe_dump(placement))
    trust = Path("/etc/docker/certs.d") / mirror.address
    trust.mkdir(parents=True)
    shutil.copy(mirror.ca_file, trust / "ca.crt")
    made = Fleet(directory, project)
    try:
        yield made
    finally:
        shutil.rmtree(made.state)
        shutil.rmtree(trust)
        docker("container", "rm", "--force", TRIAL)
        for image in docker("image", "ls", "--quiet", f"{mirror.address}/edgeml/measured").split():
            docker("image", "rm", "--force", image)


def module_below(parent: int, module: str) -> int | None:
    """Return the process of a module that a playbook runs on this machine; `parent` is that of ansible-playbook."""
    for process in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
        try:
            program, *arguments = Path(f"/proc/{process}/cmdline").read_text().split("\0")
            found = module_below(int(process), module)
        except (FileNotFoundError, ProcessLookupError):  # it has ended
            continue
        if found or ("python" in program and any(f"AnsiballZ_{module}.py" in text for text in arguments)):
            return found or int(process)
    return None


def docker(*arguments: str) -> str:
    return subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False).stdout
