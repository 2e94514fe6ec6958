# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The fleet in the lab, driven as its users drive it."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._inference.client import Client
from ansible_collections.edgeml.fleet.plugins.module_utils._inference.connect import connect
from ansible_collections.edgeml.fleet.plugins.module_utils._inference.health import (
    ModelCheck,
    check_model,
    wait_until_ready,
)
from ansible_collections.edgeml.fleet.plugins.plugin_utils.addresses import address
from ansible_collections.edgeml.fleet.tests.lab.lab import Lab
from ansible_collections.edgeml.fleet.tests.lab.topology import Topology

ROOT = Path(__file__).resolve().parents[2]
INVENTORY = ROOT / "inventories" / "lab"
# Seconds for what a slow machine does as well, only later.
PATIENCE = 1200
RECAP = re.compile(r"^(\S+)\s+: ok=(\d+)\s+changed=(\d+)\s+unreachable=(\d+)\s+failed=(\d+)", re.MULTILINE)


@dataclass(frozen=True)
class Run:
    """One ended run of ansible-playbook."""

    code: int
    output: str
    changed: dict[str, int] = field(default_factory=dict)
    tasks: dict[str, int] = field(default_factory=dict)
    """By host: tasks that changed something, and tasks that ran."""

    def must_succeed(self) -> Run:
        assert self.code == 0, self.output[-8000:]
        return self


class Fleet:
    """A fleet in the lab: playbooks from the controller, clients on the site's LAN.

    `inventories` are what -i is given, the first with the catalogue; `token` is that of the devices, kept in `state`
    if None. `state` is the directory of certificates, secrets and lock, `authorities` whom clients trust.
    """

    def __init__(
        self,
        lab: Lab,
        inventories: Sequence[Path] = (INVENTORY,),
        arguments: Sequence[str] = (),
        token: str | None = None,
    ) -> None:
        self.lab = lab
        self.inventories = inventories
        self.state = lab.state / "state"
        self.authorities = self.state / "pki" / "ca.crt"
        self.token = token
        self.arguments = [*(f"-i{inventory}" for inventory in inventories), *arguments]

    def playbook(self, name: str, *arguments: str) -> Run:
        """Run a playbook on the fleet's inventories, with its progress on the terminal."""
        command = [str(Path(sys.executable).with_name("ansible-playbook")), *self.arguments, name, *arguments]
        started = time.monotonic()
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1800)
        print(f"{name} {' '.join(arguments)}: code {done.returncode} after {time.monotonic() - started:.0f} s")
        output = done.stdout + done.stderr
        recaps = list(RECAP.finditer(done.stdout))
        changed, tasks = ({match[1]: int(match[group]) for match in recaps} for group in (3, 2))
        return Run(done.returncode, output, changed, tasks)

    def publish(self, *arguments: str) -> Run:
        """Make certificates, store and lock in one run, as the quickstart does."""
        return self.playbook("edgeml.fleet.certificates", "edgeml.fleet.store", "edgeml.fleet.publish", *arguments)

    def told(self, name: str, *arguments: str) -> dict[tuple[str, str], dict[str, Any]]:
        """Run a playbook that succeeds; return what each module of the collection answered last, by host and module."""
        command = [str(Path(sys.executable).with_name("ansible-playbook")), *self.arguments, name, *arguments]
        environment = {**os.environ, "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.jsonl"}
        started = time.monotonic()
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1800)
        print(f"{name} {' '.join(arguments)}: code {done.returncode} after {time.monotonic() - started:.0f} s")
        assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
        events = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        return {
            (host, answer["action"].rpartition(".")[2]): answer.get("results", [answer])[-1]
            for event in events
            if event["_event"] == "v2_runner_on_ok"
            for host, answer in event["hosts"].items()
            if answer["action"].startswith("edgeml.fleet.")
        }

    def plan(self, *arguments: str) -> dict[str, dict[str, Any]]:
        """Return what the playbook plan reports of each host, and under "" the totals; table and Markdown name all."""
        report = self.state / "plan"
        run = self.playbook("edgeml.fleet.plan", "-e", f"edgeml_plan_report={report}", *arguments).must_succeed()
        written = json.loads((report / "plan.json").read_text())
        hosts = {host["name"]: host for site in written["sites"] for host in site["hosts"]}
        page = (report / "plan.md").read_text()
        for name in hosts:
            assert name in run.output
            assert name in page
        return {**hosts, "": written["totals"]}

    @property
    def lock_file(self) -> Path:
        return self.state / "fleet.lock.yml"

    def lock(self) -> dict[str, Any]:
        """Return what was published last."""
        lock: dict[str, Any] = yaml.safe_load(self.lock_file.read_text())
        return lock

    def converged(self, host: str) -> bool:
        """Tell whether a device has ever been given a release."""
        return self.lab.run(host, "test -e /var/lib/edgeml/state.json").returncode == 0

    def address(self, host: str) -> str:
        return self.lab.topology.host(host).address

    def check(self, host: str, models: Collection[str], wait: float = 0) -> dict[str, list[str]]:
        """Ask models of version 1.0.0 over REST and gRPC as a client on the LAN; return the labels by protocol and
        model."""
        return self.answers(host, [(model, "1.0.0") for model in sorted(models)], wait=wait)

    def answers(
        self,
        host: str,
        models: Sequence[tuple[str, str]],
        ports: tuple[int, int] = (8000, 8001),
        wait: float = 0,
    ) -> dict[str, list[str]]:
        """Ask models, each with its version, all their golden cases of a host, at its ports of REST
        and gRPC; return the labels by protocol and model."""
        labels: dict[str, list[str]] = {}
        for scheme, port in zip(("https", "grpcs"), ports, strict=True):
            with self.client(host, scheme, port) as client:
                wait_until_ready(client, wait)
                server = client.server_metadata()
                for model, version in models:
                    golden = str(self.golden(host, model, version))
                    health = check_model(client, ModelCheck(model, version, golden), server)
                    assert not health.failures, [str(failure) for failure in health.failures]
                    labels[f"{scheme} {model}"] = [case.label or "" for case in health.golden]
        return labels

    def client(self, host: str, scheme: str, port: int) -> Client:
        return connect(
            f"{scheme}://{address(self.address(host), port)}",
            ca_file=str(self.authorities),
            server_name=host,
            bearer_token=self.token or (self.state / "inference_token").read_text().strip(),
            timeout=600,
        )

    @contextmanager
    def asking(self, host: str, model: str) -> Iterator[dict[str, int]]:
        """Ask a model of version 1.0.0 all its golden cases, over and over, over REST and gRPC on connections that are
        kept, for as long as this lasts; give the number of right answers by protocol. Anything else fails the test.
        """
        check = ModelCheck(model, "1.0.0", str(self.golden(host, model, "1.0.0")))
        answered = {"https": 0, "grpcs": 0}
        wrong: list[str] = []
        over = threading.Event()

        def ask_on(scheme: str, port: int) -> None:
            with self.client(host, scheme, port) as client:
                while not over.wait(1):
                    try:
                        health = check_model(client, check, client.server_metadata())
                    except FleetError as error:
                        wrong.append(f"{scheme}: {error}")
                    else:
                        wrong.extend(f"{scheme}: {failure}" for failure in health.failures)
                        answered[scheme] += len(health.golden)

        askers = [threading.Thread(target=ask_on, args=where) for where in zip(answered, (8000, 8001), strict=True)]
        for asker in askers:
            asker.start()
        try:
            yield answered
        finally:
            over.set()
            for asker in askers:
                asker.join()
        assert not wrong, wrong

    def golden(self, host: str, model: str, version: str) -> Path:
        """Return a directory with the golden cases of a model on a host."""
        target = self.state / "golden" / f"{model}-{version}"
        if not target.exists():
            digests = [entry["blob"]["digest"] for entry in self.lock()["models"][model][version]["variants"].values()]
            names = [digest.removeprefix("sha256:") for digest in digests]
            # Each runtime keeps the models that it serves.
            places = " ".join(f"models/{name} runtimes/*/models/{name}" for name in names)
            find = f"cd /var/lib/edgeml && cd $(ls -d {places} 2> /dev/null)"
            pack = "tar -c golden $(ls -d labels.txt 2> /dev/null) | base64"
            command = f"sudo sh -c '{find} && {pack}'"
            archive = base64.b64decode(self.lab.run(host, command, check=True).stdout)
            target.mkdir(parents=True)
            with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
                tar.extractall(target, filter="data")
        return target / "golden"

    def active_release(self, host: str) -> str:
        """Return the id of the release that a host says is its active one."""
        state = json.loads(self.lab.run(host, "sudo cat /var/lib/edgeml/state.json", check=True).stdout)
        return str(state["active"]["id"])

    def release(self, host: str) -> str:
        """Return the committed state of a device, with the id of its container and when it was started."""
        command = (
            "sudo cat /var/lib/edgeml/state.json && "
            "sudo docker inspect --format '{{.Id}} {{.State.StartedAt}}' edgeml-runtime"
        )
        return self.lab.run(host, command, check=True).stdout


def kept() -> bool:
    """Tell whether labs stay up after the tests, and are taken as they are found."""
    return bool(os.environ.get("EDGEML_KEEP_LAB"))


@contextmanager
def running_lab(request: pytest.FixtureRequest, topology: str) -> Iterator[Lab]:
    """Make a lab from nothing and remove it at the end.

    It stays up if a test of its module failed, or if labs are kept: then it is also taken as it is found.
    """
    lab = Lab(Topology.named(topology))
    if not kept():
        lab.down()
    failed_before = request.session.testsfailed
    try:
        lab.up()
    except FleetError as error:
        pytest.fail(str(error), pytrace=False)
    yield lab
    if not kept() and request.session.testsfailed == failed_before:
        lab.down()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how to look at the hosts that failed stories have left."""
    failed = terminalreporter.stats.get("failed", []) + terminalreporter.stats.get("error", [])
    files = {report.nodeid.partition("::")[0] for report in failed if report.nodeid.startswith("tests/fleet/")}
    program = ".venv/bin/python tests/lab/lab.py"
    for topology in sorted(Path(file).stem.removeprefix("test_") for file in files):
        terminalreporter.section(f"the lab {topology} of the failed story stays up")
        terminalreporter.write_line(f"its hosts:   {program} status --topology {topology}")
        terminalreporter.write_line(f"look at one: {program} ssh --topology {topology} HOST sudo docker ps --all")
        terminalreporter.write_line(f"remove it:   {program} down --topology {topology}")


@contextmanager
def going_on(fleet: Fleet, output: Path, playbook: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a playbook while the test interferes; what it says goes to the file `output`."""
    command = [str(Path(sys.executable).with_name("ansible-playbook")), *fleet.arguments, playbook]
    with (
        output.open("wb") as file,
        subprocess.Popen([*command, *arguments], cwd=ROOT, stdout=file, stderr=file, start_new_session=True) as process,
    ):
        yield process


def family(process: int) -> list[int]:
    """Return a process and all that it started; those that Ansible starts are in sessions of their own."""
    children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return [process, *(each for child in children for each in family(int(child)))]


def wait_until(happened: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < deadline, what
        time.sleep(0.2)
