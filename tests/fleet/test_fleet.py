# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The main job on real hosts. The tests tell one story in their order; each has what it needs when it runs alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ansible_runner
import pytest

from .conftest import INVENTORY, PATIENCE, ROOT, Fleet, family, going_on, kept, running_lab, wait_until

pytestmark = [pytest.mark.lab, pytest.mark.timeout(3600)]

# What inventories/lab places on its devices.
PLACED = {
    "berlin-amd64": {"digits", "file_type"},
    "berlin-arm64": {"digits"},
    "berlin-spare": {"digits", "file_type"},
}
DEVICES = ["berlin-amd64", "berlin-arm64"]
WITHOUT_SPARE = ("--limit", "all:!berlin-spare")
# What makes another release of every device than the inventory does, for the first converge.
FIRST = ("-e", "inference_runtime_log_level=warning")
DIGITS = [str(digit) for digit in range(10)]


@pytest.fixture(scope="module")
def hosts(request: pytest.FixtureRequest) -> Iterator[Fleet]:
    """The fleet of inventories/lab, with nothing published."""
    with running_lab(request, "fleet") as lab:
        yield Fleet(lab)


@pytest.fixture(scope="module")
def published(hosts: Fleet) -> Fleet:
    """The same with a lock: nothing is on its mirror and devices yet."""
    if not hosts.lock_file.exists():
        hosts.publish().must_succeed()
    return hosts


@pytest.fixture(scope="module")
def pristine(published: Fleet) -> Fleet:
    """The published fleet before its first converge."""
    for host in DEVICES:
        assert not published.converged(host), f"{host} is in use already; `make lab-down` first"
    return published


@pytest.fixture(scope="module")
def first(published: Fleet) -> Fleet:
    """The fleet with its first release, which is not that of the inventory."""
    if not all(map(published.converged, DEVICES)):
        published.playbook("edgeml.fleet.site", *WITHOUT_SPARE, *FIRST).must_succeed()
    return published


@pytest.fixture(scope="module")
def fleet(published: Fleet) -> Fleet:
    """The fleet in use: all but the spare device are converged."""
    if not all(map(published.converged, DEVICES)):
        published.playbook("edgeml.fleet.site", *WITHOUT_SPARE).must_succeed()
    return published


def test_store_and_publish(published: Fleet) -> None:
    lock = published.lock()
    assert lock["serial"] == 1
    assert set(lock["models"]) == {"digits", "file_type"}
    assert set(lock["images"]["runtime"]["platforms"]) == {"amd64", "arm64"}


@pytest.fixture(scope="module")
def predicted(pristine: Fleet) -> dict[str, dict[str, Any]]:
    """What plan says of the pristine hosts."""
    return pristine.plan(*WITHOUT_SPARE, *FIRST, "-e", "edgeml_site_uplink_mbit=20")


def test_plan_of_pristine_hosts(pristine: Fleet, predicted: dict[str, dict[str, Any]]) -> None:
    lock = pristine.lock()
    variants = {name: lock["models"][name]["1.0.0"]["variants"]["default"] for name in ("digits", "file_type")}
    for host, architecture in zip(DEVICES, ["amd64", "arm64"], strict=True):
        said = predicted[host]
        (plan,) = said["runtimes"]
        assert (said["state"], plan["action"]) == ("changed", "start")
        assert said["engine"] == {"action": "install"}
        assert {"docker.io"} <= set(said["packages"]["install"])
        platform = lock["images"]["runtime"]["platforms"][architecture]
        assert plan["image"] == {
            "before": None,
            "after": f"registry.edgeml.internal:5443/edgeml/runtime@{platform['digest']}",
        }
        assert {model["name"]: model["after"]["digest"] for model in plan["models"]} == {
            name: variants[name]["blob"]["digest"] for name in PLACED[host]
        }
        models = sum(variants[name]["blob"]["size"] for name in PLACED[host])
        assert plan["bytes"] == {"image": platform["size"], "models": models}
    mirror = predicted["berlin-mirror"]
    assert mirror["mirror"]["generation"] == {"before": None, "after": 1}
    assert {"docker.io"} <= set(mirror["packages"]["install"])
    assert mirror["server"]["action"] == "start"
    totals = predicted[""]
    assert totals["hosts"] == {"changed": 3, "unchanged": 0, "unknown": 0, "failed": 0}
    assert totals["seconds"]["lan"] is None
    assert totals["seconds"]["uplink"] == pytest.approx(totals["bytes"]["uplink"] * 8 / 20e6, abs=0.1)


def agree(predicted: dict[str, dict[str, Any]], told: dict[tuple[str, str], dict[str, Any]]) -> None:
    """Check that the modules of another run told what was predicted, of the hosts that change."""
    for (host, module), answer in told.items():
        if module == "mirror_sync":
            assert answer["plan"] == predicted[host]["mirror"]
            assert answer["bytes_fetched"] == predicted[host]["mirror"]["bytes"]
        if module == "runtime_release":
            assert [answer["plan"]] == predicted[host]["runtimes"]
            assert answer["bytes_fetched"] == predicted[host]["runtimes"][0]["bytes"]["models"]
        if module == "kernel_settings":
            assert answer["plan"] == predicted[host]["kernel"]
    asked = {host for host, module in told if module != "host_state"}
    assert asked == {host for host, said in predicted.items() if host and said["state"] == "changed"}


def test_check_mode_predicts_on_pristine_hosts(pristine: Fleet, predicted: dict[str, dict[str, Any]]) -> None:
    told = pristine.told("edgeml.fleet.site", "--check", "--diff", *WITHOUT_SPARE, *FIRST)
    agree(predicted, told)
    for host in DEVICES:
        diff = told[host, "runtime_release"]["diff"]
        assert diff["before"] == {}
        assert set(diff["after"]["models"]) == PLACED[host]
        for model in diff["after"]["models"].values():
            assert set(model) == {"digest", "options", "protocols", "variant", "version"}
        assert pristine.lab.run(host, "command -v dockerd").returncode != 0, f"check mode touched {host}"
    assert pristine.lab.run("berlin-mirror", "test -e /var/lib/edgeml/mirror").returncode != 0


def test_preflight_refuses_before_anything_is_touched(pristine: Fleet, tmp_path: Path) -> None:
    """Several faults on several hosts: one table, nothing touched, and the next test converges once they are mended."""

    def state(host: str) -> str:
        """Return the host's packages and files, with sizes and times."""
        command = "dpkg-query --show && sudo find /etc /usr /var/lib/edgeml -xdev ! -type d -printf '%p %s %T@\\n'"
        return pristine.lab.run(host, command, check=True).stdout

    hosts = ["berlin-mirror", *DEVICES]
    before = {host: state(host) for host in hosts}
    pristine.lab.fill_disk("berlin-arm64")
    pristine.lab.run("berlin-amd64", "sudo systemd-run --unit squatter python3 -m http.server 8001", check=True)
    pristine.lab.power_cut("berlin-spare")
    report = tmp_path / "preflight.json"
    missing_device = {"digits": {"requires": {"devices": ["/dev/video9"]}}}
    try:
        run = pristine.playbook(
            "edgeml.fleet.site",
            "-e",
            json.dumps({"edgeml_preflight_report": str(report), "edgeml_model_overrides": missing_device}),
        )
    finally:
        pristine.lab.free_disk("berlin-arm64")
        pristine.lab.run("berlin-amd64", "sudo systemctl stop squatter")
        pristine.lab.power_on("berlin-spare")
    assert run.code != 0
    assert set(run.changed.values()) == {0}
    findings = json.loads(report.read_text())["findings"]
    refused = {(entry["host"], entry["name"]) for entry in findings if entry["severity"] == "refuse"}
    assert refused == {
        ("berlin-amd64", "port"),
        ("berlin-amd64", "device"),
        ("berlin-arm64", "disk_space"),
        ("berlin-arm64", "device"),
    }
    assert ("berlin-spare", "unreachable", "warn") in {(f["host"], f["name"], f["severity"]) for f in findings}
    rows = [line.split()[:3] for line in run.output.splitlines()]
    table = [(host, name) for host, severity, name in (row for row in rows if row[1:2] == ["refuse"])]
    assert len(table) == len(refused)
    assert set(table) == refused
    assert {host: state(host) for host in hosts} == before


def test_site_converges_both_architectures(pristine: Fleet, predicted: dict[str, dict[str, Any]]) -> None:
    told = pristine.told("edgeml.fleet.site", *WITHOUT_SPARE, *FIRST)
    agree(predicted, told)
    for host in DEVICES:
        committed = json.loads(pristine.lab.run(host, "cat /var/lib/edgeml/state.json", check=True).stdout)["active"]
        (plan,) = predicted[host]["runtimes"]
        assert committed == told[host, "runtime_release"]["release"]
        assert committed["image"] == plan["image"]["after"]
        assert {model.pop("name"): model for model in committed["models"]} == {
            model["name"]: model["after"] for model in plan["models"]
        }
    for host, machine in zip(DEVICES, ["x86_64", "aarch64"], strict=True):
        seen = pristine.lab.run(
            host, "sudo docker exec edgeml-runtime python3.13 -c 'import os; print(os.uname().machine)'", check=True
        )
        assert seen.stdout.strip() == machine


def test_a_release_gives_way_to_another_while_clients_ask(first: Fleet) -> None:
    """Each answer is right, also on the emulated architecture. No verdict depends on how fast they come."""
    before = {host: first.release(host) for host in DEVICES}
    with first.asking("berlin-arm64", "digits") as answered:

        def wait_for_more() -> dict[str, int]:
            seen, deadline = dict(answered), time.monotonic() + PATIENCE
            while any(answered[protocol] == seen[protocol] for protocol in answered):
                assert time.monotonic() < deadline, f"no more answers than {seen}"
                time.sleep(0.1)
            return seen

        wait_for_more()
        first.playbook("edgeml.fleet.site", *WITHOUT_SPARE).must_succeed()
        seen = wait_for_more()
    print(f"right answers: {answered}, of these {seen} until the run had ended")
    assert all(first.release(host) != before[host] for host in DEVICES)


def test_second_run_changes_nothing(fleet: Fleet) -> None:
    run = fleet.publish("edgeml.fleet.preflight", *WITHOUT_SPARE).must_succeed()
    assert set(run.changed.values()) == {0}, f"{run.changed}\n{run.output[-6000:]}"
    run = fleet.playbook("edgeml.fleet.site", *WITHOUT_SPARE).must_succeed()
    assert set(run.changed.values()) == {0}, f"{run.changed}\n{run.output[-6000:]}"
    # One call for each host, and nothing that would disturb what it serves.
    assert set(run.tasks.values()) == {1}, f"{run.tasks}\n{run.output[-6000:]}"


def test_every_drift_is_seen_and_repaired(fleet: Fleet) -> None:
    """Made by hand on a device and on the mirror: check mode tells it, a run repairs it, the next run is idle."""
    device, mirror = "berlin-amd64", "berlin-mirror"
    hosts = ("--limit", f"{device},{mirror}")
    drifts = {
        device: [
            # A mount point, which cannot be replaced.
            "grep -v registry.edgeml.internal /etc/hosts > /run/hosts; cat /run/hosts > /etc/hosts",
            "chmod 0644 /etc/edgeml/runtime/server.key",
            "rm /etc/docker/certs.d/registry.edgeml.internal:5443/ca.crt",
            "sysctl --write net.ipv4.tcp_migrate_req=0",
            "docker update --restart no edgeml-runtime",
            "systemctl disable docker",
        ],
        mirror: [
            "docker stop edgeml-mirror",
            "rm /etc/edgeml/mirror/nginx.conf",
            "find /var/lib/edgeml/mirror/cas -type f | sort | head -1 | xargs rm",
        ],
    }
    for host, commands in drifts.items():
        for command in commands:
            fleet.lab.run(host, f"sudo sh -c '{command}'", check=True)
    told = fleet.playbook("edgeml.fleet.site", "--check", *hosts).must_succeed()
    assert told.changed[device] >= 4
    assert told.changed[mirror] >= 2
    repaired = fleet.playbook("edgeml.fleet.site", *hosts).must_succeed()
    assert repaired.changed[device] >= 4
    assert repaired.changed[mirror] >= 2
    again = fleet.playbook("edgeml.fleet.site", *hosts).must_succeed()
    assert set(again.tasks.values()) == {1}, again.output[-6000:]
    policy = "sudo docker inspect --format '{{.HostConfig.RestartPolicy.Name}}' edgeml-runtime"
    seen = fleet.lab.run(device, f"{policy}; systemctl is-enabled docker", check=True).stdout
    assert seen.split() == ["always", "enabled"]


def test_a_mirror_fills_itself_after_a_power_cut(fleet: Fleet, tmp_path: Path) -> None:
    """Its content is lost, controller and power go in the middle of a run: it goes on alone. A flipped bit heals."""
    mirror, content = "berlin-mirror", "/var/lib/edgeml/mirror/cas/sha256"

    def root(command: str) -> str:
        return fleet.lab.run(mirror, f"sudo sh -c '{command}'", check=True).stdout

    def damaged() -> list[str]:
        lines = root(f"cd {content} && sha256sum *").splitlines()
        return [name for digest, name in map(str.split, lines) if digest != name]

    blobs = root(f"ls {content}").split()
    largest = root(f"ls -S {content}").split()[0]
    size = int(root(f"stat --format %s {content}/{largest}"))
    root(f"rm {content}/*")
    slowly = ("-e", f"site_mirror_mbit={size * 8 // 20_000_000 + 1}")
    staging = "du --bytes --summarize /var/lib/edgeml/mirror/staging 2> /dev/null || echo 0"
    with going_on(fleet, tmp_path / "output", "edgeml.fleet.mirror", "--limit", mirror, *slowly) as run:
        wait_until(lambda: int(root(staging).split()[0]) > size // 10, "nothing is fetched")
        for process in family(run.pid):
            os.kill(process, signal.SIGKILL)
    fleet.lab.power_cut(mirror)
    fleet.lab.power_on(mirror)
    assert root(f"ls {content}").split() != blobs
    wait_until(lambda: root(f"ls {content}").split() == blobs, "the mirror does not go on")
    assert damaged() == []

    # Two minutes after the boot a scrub begins by itself, which would heal it before anybody has seen it.
    assert root("systemctl is-active edgeml-mirror-scrub.timer").strip() == "active"
    root("systemctl stop edgeml-mirror-scrub.timer")
    scrubs = "systemctl is-active edgeml-mirror-scrub.service || true"
    wait_until(lambda: root(scrubs).strip() in ("inactive", "failed"), "the scrub does not end")
    root(f"printf damaged! | dd of={content}/{largest} bs=1 seek={size // 2} conv=notrunc")
    assert damaged() == [largest]
    root("systemctl start edgeml-mirror-scrub.service")
    assert damaged() == []
    root("systemctl start edgeml-mirror-scrub.timer")
    # Its files are others than the last converge left, and what it was told to hold: a run finds nothing to do.
    assert fleet.playbook("edgeml.fleet.mirror", "--limit", mirror).must_succeed().changed[mirror] == 0


def test_plan_of_a_change(fleet: Fleet) -> None:
    """A model goes and a setting changes; what stays is told in one word, and nothing is moved."""
    change = json.dumps({"edgeml_models": [{"name": "digits"}], "inference_runtime_engine": {"threads": 2}})
    hosts = ("--limit", "berlin-mirror,berlin-amd64")
    before = fleet.release("berlin-amd64")
    predicted = fleet.plan(*hosts, "-e", change)
    (plan,) = predicted["berlin-amd64"]["runtimes"]
    assert plan["action"] == "restart"
    assert plan["image"] is None
    assert [(model["name"], model["after"]) for model in plan["models"]] == [("file_type", None)]
    assert plan["settings"] == [{"key": "engine.threads", "before": None, "after": 2}]
    assert predicted["berlin-mirror"]["state"] == "unchanged"
    assert predicted[""]["bytes"] == {"uplink": 0, "lan": 0}
    told = fleet.told("edgeml.fleet.site", "--check", "--diff", *hosts, "-e", change)
    # The mirror holds what the inventory places, whatever one run says.
    agree(predicted, told)
    diff = told["berlin-amd64", "runtime_release"]["diff"]
    assert set(diff["before"]["models"]) == {"digits", "file_type"}
    assert set(diff["after"]["models"]) == {"digits"}
    assert fleet.release("berlin-amd64") == before


@pytest.mark.parametrize("host", DEVICES)
def test_models_answer_on_the_lan(fleet: Fleet, host: str) -> None:
    labels = fleet.check(host, PLACED[host])
    assert labels["https digits"] == labels["grpcs digits"] == DIGITS
    if "file_type" in PLACED[host]:
        assert len(set(labels["https file_type"])) == 9


def test_hosts_pull_from_the_mirror_only(fleet: Fleet) -> None:
    for host in DEVICES:
        assert fleet.lab.run(host, "getent hosts store.edgeml.internal").returncode != 0
        image = fleet.lab.run(host, "sudo docker inspect --format '{{.Config.Image}}' edgeml-runtime", check=True)
        assert image.stdout.startswith("registry.edgeml.internal:5443/edgeml/runtime@sha256:")


def test_awx_layout_gives_the_same_result(fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As AWX runs a job template: a private data directory, the project with its inventory, survey answers."""
    del fleet
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    (tmp_path / "env").mkdir()
    # A survey's answer is text.
    (tmp_path / "env" / "extravars").write_text(json.dumps({"edgeml_devices": "berlin-amd64"}))
    (tmp_path / "env" / "envvars").write_text(json.dumps({"ANSIBLE_INJECT_FACT_VARS": "false"}))
    (tmp_path / "project").symlink_to(ROOT)
    for name in ("site", "verify"):
        run = ansible_runner.run(
            private_data_dir=str(tmp_path),
            playbook=f"playbooks/{name}.yml",
            inventory=str(tmp_path / "project" / "inventories" / "lab"),
            quiet=True,
        )
        assert run.status == "successful", run.stdout.read()[-6000:]
        assert set(run.stats["ok"]) - {"berlin-mirror"} == {"berlin-amd64"}
        assert not run.stats["changed"], run.stats


def test_what_models_require_comes_and_goes_with_them(fleet: Fleet) -> None:
    seen = "dpkg-query --show hello; cat /proc/sys/net/ipv4/tcp_fin_timeout; cat /etc/sysctl.d/90-edgeml.conf"
    before, release = fleet.lab.run("berlin-amd64", seen).stdout, fleet.release("berlin-amd64")
    requires = {"packages": ["hello"], "sysctls": {"net.ipv4.tcp_fin_timeout": 31}}
    arguments = ["-e", json.dumps({"edgeml_model_overrides": {"digits": {"requires": requires}}})]
    predicted = fleet.plan("--limit", "berlin-amd64", *arguments)
    assert predicted["berlin-amd64"]["packages"] == {"install": ["hello"], "remove": []}
    assert predicted["berlin-amd64"]["kernel"] == [
        {"kind": "sysctl", "name": "net.ipv4.tcp_fin_timeout", "before": "60", "after": "31"}
    ]
    agree(predicted, fleet.told("edgeml.fleet.site", "--limit", "berlin-amd64", *arguments))
    lines = fleet.lab.run("berlin-amd64", seen, check=True).stdout.splitlines()
    assert lines[0].startswith("hello")
    assert "31" in lines
    assert "net.ipv4.tcp_fin_timeout = 31" in lines
    run = fleet.playbook("edgeml.fleet.site", "--limit", "berlin-amd64").must_succeed()
    assert run.changed["berlin-amd64"] > 0
    assert fleet.lab.run("berlin-amd64", seen).stdout == before
    assert fleet.release("berlin-amd64") == release, "no restart for what the host alone needs"


def test_device_goes_back_alone_and_by_hand(fleet: Fleet) -> None:
    """A device leaves a release that crashes later; an operator goes back without mirror; site keeps to both."""
    device, mirror = "berlin-amd64", "berlin-mirror"
    hosts = ("--limit", f"{device},{mirror}")
    other = ("-e", "inference_runtime_log_level=warning")

    def release() -> str:
        return fleet.active_release(device)

    first = release()
    fleet.playbook("edgeml.fleet.site", *hosts, *other).must_succeed()
    second = release()
    assert second != first

    kill = "sudo sh -c 'kill -9 $(docker inspect --format {{.State.Pid}} edgeml-runtime)'"
    count = "sudo docker inspect --format '{{.RestartCount}}' edgeml-runtime"
    for crashes in ("1", "2", "3"):
        fleet.lab.run(device, kill, check=True)
        while fleet.lab.run(device, count).stdout.strip() != crashes and release() != first:
            time.sleep(0.5)
    while release() != first:  # the guard looks every 15 s
        time.sleep(0.5)
    fleet.check(device, PLACED[device], wait=PATIENCE)
    journal = fleet.lab.run(device, "sudo journalctl --unit edgeml-guard.service", check=True).stdout
    assert f"went back from release {second[:12]} to {first[:12]}: it crashed 3 times" in journal

    refused = fleet.playbook("edgeml.fleet.site", *hosts, *other)
    assert refused.code != 0
    assert "This release was rolled back here" in refused.output
    assert release() == first

    fleet.playbook("edgeml.fleet.site", *hosts, *other, "-e", "edgeml_force=true").must_succeed()
    assert release() == second
    fleet.lab.run(mirror, "sudo docker stop edgeml-mirror", check=True)
    back = fleet.playbook("edgeml.fleet.rollback", "--limit", device).must_succeed()
    assert f"went back to release {first[:12]}" in " ".join(back.output.split())
    assert release() == first
    fleet.check(device, PLACED[device])
    fleet.playbook("edgeml.fleet.site", *hosts).must_succeed()


class TestBadInput:
    """Each stops before the running service is touched, with one message that says what to do."""

    @pytest.fixture(autouse=True)
    def service_stays(self, fleet: Fleet) -> object:
        before = {host: fleet.release(host) for host in DEVICES}
        yield
        assert {host: fleet.release(host) for host in DEVICES} == before
        fleet.check("berlin-amd64", PLACED["berlin-amd64"])

    def refused(self, fleet: Fleet, *arguments: str) -> str:
        run = fleet.playbook("edgeml.fleet.site", *arguments)
        assert run.code != 0
        assert set(run.changed.values()) <= {0}, run.changed
        return " ".join(run.output.split())

    def test_model_that_is_not_in_the_catalogue(self, fleet: Fleet) -> None:
        words = self.refused(fleet, *WITHOUT_SPARE, "-e", json.dumps({"edgeml_models": [{"name": "digit"}]}))
        assert "Model digit is not in the catalogue" in words
        assert "did you mean digits" in words

    def test_architecture_without_an_image(self, fleet: Fleet) -> None:
        words = self.refused(fleet, "--limit", "berlin-amd64", "-e", "inference_runtime_architecture=arm64", "-e",
                             json.dumps({"inference_runtime_lock": self.without(fleet.lock(), "arm64")}))  # fmt: skip
        assert "no runtime image for architecture arm64" in words
        assert "images for amd64" in words

    def without(self, lock: dict[str, Any], architecture: str) -> object:
        del lock["images"]["runtime"]["platforms"][architecture]
        return lock

    def test_wrong_registry_password(self, fleet: Fleet) -> None:
        wrong = "not-the-password"
        arguments = ["-e", json.dumps({"edgeml_store_password": wrong})]
        run = fleet.playbook("edgeml.fleet.publish", *arguments)
        words = " ".join(run.output.split())
        assert run.code != 0
        assert "refused the user name and password" in words
        assert wrong not in run.output

    def test_port_already_taken_and_full_disk(self, fleet: Fleet) -> None:
        fleet.lab.fill_disk("berlin-amd64")
        try:
            # Another configuration makes another release, and without its models they have to be fetched.
            fleet.lab.run("berlin-amd64", "sudo mv /var/lib/edgeml/models /var/lib/edgeml/models.away", check=True)
            # sshd holds port 22 on every host.
            port = json.dumps({"inference_runtime_rest_port": 22})
            words = self.refused(fleet, "--limit", "berlin-amd64", "-e", port)
        finally:
            fleet.lab.run("berlin-amd64", "sudo mv /var/lib/edgeml/models.away /var/lib/edgeml/models")
            fleet.lab.free_disk("berlin-amd64")
        assert "0.0.0.0:22 is held by sshd" in words
        assert "inference_runtime_rest_port" in words
        assert "0 MiB free at /var/lib/edgeml" in words
        assert "free disk space" in words


class TestWithoutUplink:
    """The site is cut off, the store is gone, power fails."""

    @pytest.fixture(scope="class")
    def site(self, fleet: Fleet) -> Iterator[Fleet]:
        """The site without uplink and store."""
        # In the workshop, before the site was cut off: a spare host gets its engine and its packages.
        fleet.playbook(str(ROOT / "tests" / "fleet" / "workshop.yml")).must_succeed()
        fleet.lab.cut("berlin")
        fleet.lab.power_cut("central")
        yield fleet
        if kept():
            fleet.lab.power_on("central")
            fleet.lab.restore("berlin")

    @pytest.fixture(scope="class")
    def joined(self, site: Fleet) -> Fleet:
        """The same with the spare device."""
        if not site.converged("berlin-spare"):
            site.playbook("edgeml.fleet.site", "--limit", "berlin-spare").must_succeed()
        return site

    def test_everything_comes_back_alone(self, site: Fleet) -> None:
        fleet = site
        hosts = ["berlin-mirror", *DEVICES]
        for host in hosts:
            fleet.lab.power_cut(host)
        for host in hosts:
            fleet.lab.power_on(host)
        for host in DEVICES:
            fleet.check(host, PLACED[host], wait=PATIENCE)

    def test_a_new_host_joins_from_the_mirror(self, site: Fleet) -> None:
        images = site.lab.run("berlin-spare", "sudo docker image ls --quiet", check=True).stdout
        assert images == "", "berlin-spare is in use already; `make lab-down` first"
        site.playbook("edgeml.fleet.site", "--limit", "berlin-spare").must_succeed()
        site.check("berlin-spare", PLACED["berlin-spare"])

    def test_the_whole_site_converges_without_store_and_drift_is_repaired(self, joined: Fleet) -> None:
        joined.lab.run("berlin-amd64", "sudo docker rm --force edgeml-runtime", check=True)
        run = joined.playbook("edgeml.fleet.site").must_succeed()
        changed = dict.fromkeys(["berlin-mirror", *PLACED], 0) | {"berlin-amd64": 1}
        assert run.changed == changed, f"{run.changed}\n{run.output[-6000:]}"
        joined.check("berlin-amd64", PLACED["berlin-amd64"])

    def test_unreachable_mirror(self, site: Fleet, tmp_path: Path) -> None:
        before = site.release("berlin-amd64")
        report = tmp_path / "preflight.json"
        change = {"inference_runtime_engine": {"threads": 2}, "edgeml_preflight_report": str(report)}
        site.lab.power_cut("berlin-mirror")
        try:
            arguments = ["--limit", "berlin-amd64", "-e", json.dumps(change)]
            site.lab.run("berlin-amd64", "sudo mv /var/lib/edgeml/models /var/lib/edgeml/models.away", check=True)
            run = site.playbook("edgeml.fleet.site", *arguments)
        finally:
            site.lab.run("berlin-amd64", "sudo mv /var/lib/edgeml/models.away /var/lib/edgeml/models")
            site.lab.power_on("berlin-mirror")
        assert run.code != 0
        # Without the mirror this network's name service does not know its name either.
        refusals = [f for f in json.loads(report.read_text())["findings"] if f["severity"] == "refuse"]
        assert {refusal["name"] for refusal in refusals} & {"name_resolution", "registry"}, refusals
        assert any("registry.edgeml.internal" in refusal["value"] for refusal in refusals), refusals
        assert site.release("berlin-amd64") == before


def test_inventory_is_an_ordinary_one() -> None:
    command = [str(Path(sys.executable).with_name("ansible-inventory")), "-i", str(INVENTORY), "--graph"]
    graph = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "berlin-arm64" in graph
