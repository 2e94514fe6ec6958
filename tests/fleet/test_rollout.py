# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A release goes through a fleet in waves, on real hosts. The tests tell one story and run in their order."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from .conftest import PATIENCE, ROOT, Fleet, family, going_on, running_lab, wait_until

pytestmark = [pytest.mark.lab, pytest.mark.timeout(3600)]

LAB = Path(__file__).with_name("rollout_lab")
DEVICES = ("rollout-1", "rollout-2", "rollout-3", "rollout-4")
#: On a device: the unit of each release waits before it begins, and says so, until it is let go. In memory, so that it
#: ends with the power.
HOLD = Path("/run/systemd/system/edgeml-release-.service.d/hold.conf")
HELD, LET_GO = "/run/edgeml-held", "/run/edgeml-let-go"
WAIT = f"""[Service]
TimeoutStartSec=infinity
ExecStartPre=/bin/sh -c 'touch {HELD}; until test -e {LET_GO}; do sleep 0.1; done'
"""
DIGITS = [str(digit) for digit in range(10)]


def settings(**values: Any) -> tuple[str, str]:
    return "-e", json.dumps({"edgeml_rollout": values})


def level(name: str) -> tuple[str, str]:
    """Return what makes another release of every device: its log level."""
    return "-e", f"inference_runtime_log_level={name}"


@pytest.fixture(scope="module")
def fleet(request: pytest.FixtureRequest) -> Iterator[Fleet]:
    """A site that is published and not there yet."""
    with running_lab(request, "rollout") as lab:
        fleet = Fleet(lab, (LAB,))
        fleet.publish().must_succeed()
        yield fleet


def ledger(fleet: Fleet) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (fleet.state / "fleet.ledger.jsonl").read_text().splitlines()]


def events(fleet: Fleet, rollout: str, *outcomes: str) -> list[tuple[str, str]]:
    """Return (host, outcome) of what the ledger tells of a rollout."""
    return [
        (line["host"], line["outcome"])
        for line in ledger(fleet)
        if line["rollout"] == rollout and (not outcomes or line["outcome"] in outcomes)
    ]


def released(fleet: Fleet) -> dict[str, str]:
    """Return the id of each device's active release."""
    return {host: fleet.active_release(host) for host in DEVICES}


def hold(fleet: Fleet, host: str) -> None:
    """Let the next release of a host stop where it begins, so that no busy machine misses it."""
    write = f"mkdir -p {HOLD.parent} && echo {shlex.quote(WAIT)} > {HOLD} && systemctl daemon-reload"
    fleet.lab.run(host, f"sudo sh -c {shlex.quote(write)}", check=True)


def wait_until_held(fleet: Fleet, host: str) -> None:
    """Wait until the release of a host has begun. The run waits for it."""
    wait_until(lambda: fleet.lab.run(host, f"test -e {HELD}").returncode == 0, f"{host} gets no release")


def let_go(fleet: Fleet, host: str) -> None:
    """Let the release of a host go on, to its end."""
    before = released(fleet)[host]
    fleet.lab.run(host, f"sudo touch {LET_GO}", check=True)
    wait_until(lambda: released(fleet)[host] != before, f"{host} gets no release")
    wait_until(lambda: not fleet.lab.run(host, "pgrep -f '[ ]transaction /var/lib/edgeml'").stdout, "no end")
    fleet.lab.run(host, f"sudo rm -r {HOLD.parent} {HELD} {LET_GO} && sudo systemctl daemon-reload", check=True)


def serves(fleet: Fleet, host: str) -> None:
    assert fleet.check(host, ["digits"], wait=PATIENCE) == {"https digits": DIGITS, "grpcs digits": DIGITS}


def test_settings_are_refused_before_any_host_is_asked(fleet: Fleet) -> None:
    run = fleet.playbook("edgeml.fleet.rollout", *settings(growth=0, window={"from": "22:00"}))
    assert run.code != 0
    words = " ".join(run.output.split())
    assert "The key to is missing at edgeml_rollout.window" in words
    assert "at edgeml_rollout.growth. Seen: 0 (number)" in words
    assert "Compare the devices" not in words


def test_the_first_release_goes_out_in_waves(fleet: Fleet) -> None:
    run = fleet.playbook("edgeml.fleet.rollout", *settings(canary="rollout-3", first=3)).must_succeed()
    assert "Wave 1 of 2, canary: 1 done" in run.output
    assert "Wave 2 of 2: 3 done" in run.output
    serves(fleet, "rollout-3")
    assert sorted(events(fleet, "1.1", "active")) == [(host, "active") for host in DEVICES]
    assert ("", "rollout_finished") in events(fleet, "1.1")


def test_check_mode_tells_the_waves_of_a_slice(fleet: Fleet, tmp_path: Path) -> None:
    """As AWX cuts an inventory into slices: neither the mirror nor the other hosts are in it."""
    before, known = released(fleet), ledger(fleet)
    part = shutil.copytree(LAB, tmp_path / "rollout_lab")
    hosts = yaml.safe_load((part / "10-hosts.yml").read_text())
    hosts["all"]["children"] = {
        "site_berlin": {
            "hosts": {name: hosts["all"]["children"]["devices"]["hosts"][name] for name in DEVICES[1:3]},
            "vars": hosts["all"]["children"]["site_berlin"]["vars"],
        },
        "devices": {"hosts": dict.fromkeys(DEVICES[1:3])},
        "mirrors": {"hosts": {}},
    }
    (part / "10-hosts.yml").write_text(yaml.safe_dump(hosts))
    placement = (part / "20-placement.yml").read_text()
    (part / "20-placement.yml").write_text(placement.replace("../../..", str(ROOT)))
    run = Fleet(fleet.lab, (part,), ["-e", f"edgeml_build_directory={ROOT}/build"]).playbook(
        "edgeml.fleet.rollout", "--check", *settings(canary="rollout-3:rollout-1"), *level("warning")
    )
    run.must_succeed()
    assert "2 hosts to do in 2 waves" in run.output
    assert "rollout-3  runtime: restart (log_level)" in run.output
    # The controller takes part in each wave.
    assert set(run.tasks) == {*DEVICES[1:3], "wave-1", "wave-2"}
    assert (released(fleet), ledger(fleet)) == (before, known)


def test_a_wave_that_fails_ends_the_rollout_and_says_why(fleet: Fleet, tmp_path: Path) -> None:
    before = released(fleet)
    slow = tmp_path / "slow.yml"
    objective = {"edgeml_model_overrides": {"digits": {"slo": {"p95_ms": 0.001}}}}
    slow.write_text(yaml.safe_dump({"all": {"hosts": {"rollout-2": objective}}}))
    arguments = ("-i", str(slow), *level("warning"))
    run = fleet.playbook("edgeml.fleet.rollout", *arguments, *settings(first=1, growth=2, rollback=True))
    assert run.code != 0
    words = " ".join(run.output.split())
    assert "Wave 2 of 3: 1 done, 1 failed" in words
    assert "the rollout ends here: 1 of 2 hosts failed, 0 may: rollout-2:" in words
    assert "misses its latency objective" in words
    told = events(fleet, "1.2", "active", "refused", "rollout_stopped")
    assert sorted(told) == [
        ("", "rollout_stopped"), ("rollout-1", "active"), ("rollout-2", "refused"), ("rollout-3", "active"),
    ]  # fmt: skip
    # The hosts that it has brought there go back; the last wave has not begun.
    assert "going back: rollout-1, rollout-3" in words
    assert released(fleet) == before
    back = [line["host"] for line in ledger(fleet) if line["outcome"] == "rolled_back"]
    assert sorted(back) == ["rollout-1", "rollout-3"]
    serves(fleet, "rollout-1")
    serves(fleet, "rollout-2")


def test_hosts_without_power_are_pending_and_in_nobodys_way(fleet: Fleet, tmp_path: Path) -> None:
    """One is not there when the rollout begins, one is lost in its wave, and one is all of its wave, which ends it."""
    before = released(fleet)
    fleet.lab.power_cut("rollout-4")
    for host in ("rollout-2", "rollout-3"):
        hold(fleet, host)
    try:
        with going_on(
            fleet, tmp_path / "output", "edgeml.fleet.rollout", *level("error"), *settings(canary="rollout-1:rollout-2")
        ) as run:
            for host in ("rollout-2", "rollout-3"):
                wait_until_held(fleet, host)
                fleet.lab.power_cut(host)
    finally:
        for host in DEVICES[1:]:
            fleet.lab.power_on(host)
    output = (tmp_path / "output").read_text()
    assert run.returncode == 2, output[-8000:]
    words = " ".join(output.split())
    assert "3 hosts to do in 2 waves, 0 unchanged, 1 pending" in words
    # Waves are counted on, whatever ended before.
    assert re.search(r"Wave \d of \d, canary: 1 done, 1 pending", words)
    assert "pending: rollout-2: It was lost in its wave" in words
    assert re.search(r"Wave \d of \d: 1 pending", words)
    assert "the rollout ends here: all 1 hosts that were to do were lost: rollout-3: It was lost in its wave" in words
    assert ", 1 done, 0 failed, 0 not begun, 3 pending" in words
    for host in ("rollout-2", "rollout-3"):
        assert output.count(f"[{host}]: UNREACHABLE!") == 1, "one attempt to connect, not one for each task"
    pending = {line["host"]: line["reason"] for line in ledger(fleet) if line["outcome"] == "pending"}
    assert sorted(pending) == ["rollout-2", "rollout-3", "rollout-4"]
    assert "cannot be reached" in pending["rollout-4"]
    # In the order of their hosts, since all of it is told at once.
    assert {line["outcome"] for line in ledger(fleet)[-3:]} == {"pending", "rollout_wave", "rollout_stopped"}
    lost = "rollout-2,rollout-3,rollout-4"
    again = fleet.playbook("edgeml.fleet.rollout", *level("error"), "--limit", lost).must_succeed()
    assert "3 hosts to do in 2 waves" in again.output
    after = released(fleet)
    assert all(after[host] != before[host] for host in DEVICES)
    serves(fleet, "rollout-2")
    serves(fleet, "rollout-4")


def test_devices_whose_mirror_is_gone_go_back_or_wait(fleet: Fleet) -> None:
    before = released(fleet)
    fleet.lab.power_cut("rollout-mirror")
    try:
        started = time.monotonic()
        run = fleet.playbook("edgeml.fleet.rollback", "--limit", "rollout-1,rollout-2").must_succeed()
        print(f"two devices went back in {time.monotonic() - started:.1f} s")
        assert "went back to release" in " ".join(run.output.split())
        after = released(fleet)
        assert [after[host] != before[host] for host in DEVICES] == [True, True, False, False]
        serves(fleet, "rollout-1")
        told = [line["host"] for line in ledger(fleet) if (line["outcome"], line["by"]) == ("rolled_back", "operator")]
        assert sorted(told[-2:]) == ["rollout-1", "rollout-2"]

        # Who has lost content waits for the mirror; who needs none does not.
        fleet.lab.run("rollout-3", "sudo sh -c 'rm -r /var/lib/edgeml/models/*'", check=True)
        run = fleet.playbook(
            "edgeml.fleet.rollout", *level("debug"), "--limit", "rollout-3,rollout-4,rollout-mirror"
        ).must_succeed()
    finally:
        fleet.lab.power_on("rollout-mirror")
    assert "1 hosts to do in 1 waves, 0 unchanged, 1 pending" in run.output
    assert "pending: rollout-3: registry.edgeml.internal:5443" in run.output
    assert [line["host"] for line in ledger(fleet) if line["outcome"] == "pending"][-1] == "rollout-3"
    assert released(fleet)["rollout-3"] == before["rollout-3"]
    assert released(fleet)["rollout-4"] != before["rollout-4"]


def test_a_controller_that_is_killed_in_a_wave_harms_nothing(fleet: Fleet, tmp_path: Path) -> None:
    before = released(fleet)
    arguments = (*level("debug"), *settings(first=1))
    output = tmp_path / "output"
    hold(fleet, "rollout-2")
    with going_on(fleet, output, "edgeml.fleet.rollout", *arguments) as run:
        wait_until_held(fleet, "rollout-2")
        for process in family(run.pid):
            os.kill(process, signal.SIGKILL)
    assert re.search(r"\nWave \d of \d: 1 done", output.read_text())
    rollout = ledger(fleet)[-1]["rollout"]
    assert ("rollout-2", "active") not in events(fleet, rollout)
    # The device goes on by itself, and the next run learns of it.
    let_go(fleet, "rollout-2")
    assert released(fleet)["rollout-2"] != before["rollout-2"]
    for host in DEVICES:
        serves(fleet, host)
    again = fleet.playbook("edgeml.fleet.rollout", *arguments).must_succeed()
    assert "done in earlier runs" in again.output
    assert ("rollout-2", "active") in events(fleet, rollout)
    assert ("", "rollout_finished") in events(fleet, rollout)
    after = released(fleet)
    assert [after[host] != before[host] for host in DEVICES] == [True, True, True, False]
    again = fleet.playbook("edgeml.fleet.rollout", *level("debug")).must_succeed()
    assert "0 hosts to do in 0 waves, 4 unchanged" in again.output
    assert set(again.changed.values()) == {0}


def test_verify_judges_and_the_ledger_comes_back(fleet: Fleet, tmp_path: Path) -> None:
    fleet.playbook("edgeml.fleet.verify", *level("debug"), "-e", f"edgeml_verify_report={tmp_path}").must_succeed()
    report = json.loads((tmp_path / "verify.json").read_text())
    assert report["totals"] == {"passed": 4, "failed": 0}
    assert {
        (model["name"], model["cases"], model["passed"]) for host in report["hosts"] for model in host["models"]
    } == {("digits", 10, 10)}
    fleet.lab.run("rollout-2", "sudo docker stop edgeml-runtime", check=True)
    # Nobody waits for the one that is stopped; the others have their time.
    impatient = tmp_path / "impatient.yml"
    impatient.write_text(yaml.safe_dump({"all": {"hosts": {"rollout-2": {"inference_runtime_start_timeout": 2}}}}))
    arguments = ("-i", str(impatient), *level("debug"), "-e", f"edgeml_verify_report={tmp_path}")
    run = fleet.playbook("edgeml.fleet.verify", *arguments)
    assert run.code == 2
    report = json.loads((tmp_path / "verify.json").read_text())
    (failed,) = (host for host in report["hosts"] if not host["passed"])
    assert failed["name"] == "rollout-2"
    assert {"health", "drift"} <= {finding["check"] for finding in failed["findings"]}
    fleet.lab.run("rollout-2", "sudo docker start edgeml-runtime", check=True)

    def active() -> list[tuple[str, ...]]:
        return sorted(
            tuple(line[key] for key in ("time", "host", "release"))
            for line in ledger(fleet)
            if line["outcome"] == "active"
        )

    known = active()
    (fleet.state / "fleet.ledger.jsonl").unlink()
    fleet.playbook("edgeml.fleet.ledger").must_succeed()
    assert active() == known
    again = fleet.playbook("edgeml.fleet.ledger").must_succeed()
    assert set(again.changed.values()) == {0}
