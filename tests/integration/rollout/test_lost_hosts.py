# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The playbook rollout when hosts are lost at another step than their release. This machine plays them.

Hosts answer until a module would change something on them, and never again, or fail at it. What a host says that it
serves is what it is told to say, if that is told.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.edgeml.fleet.tests.support.reported_fleet import certificate, one_model_lock
from ansible_collections.edgeml.fleet.tests.support.told_releases import release, told

CONNECTION = """\
from pathlib import Path

from ansible.errors import AnsibleConnectionFailure, AnsibleError
from ansible.plugins.connection.local import Connection as Local

DOCUMENTATION = '''
name: until_changed
short_description: This machine, which is lost when something would change on it
description: As the name says.
options:
  remote_addr:
    default: inventory_hostname
    vars: [{name: ansible_host}]
    description: The host

'''
ASKING = ("AnsiballZ_host_state.py", "AnsiballZ_host_preflight.py", "AnsiballZ_runtime_release_info.py")


class Connection(Local):
    transport = "until_changed"

    def put_file(self, in_path, out_path):
        mark = Path(__file__).with_name(f"lost-{self._play_context.remote_addr}")
        told = mark.with_name(mark.name.replace("lost", "told"))
        if told.exists() and out_path.endswith(ASKING):
            pass
        elif mark.exists() or not out_path.endswith(ASKING):
            with mark.open("a") as file:
                file.write(out_path.rpartition("/")[2] + "\\n")
            fails = mark.with_name(mark.name.replace("lost", "fails")).exists()
            if fails and not out_path.endswith("AnsiballZ_runtime_release.py"):
                raise AnsibleError("the disk is full")
            raise AnsibleConnectionFailure("no route to host")
        super().put_file(in_path, out_path)

    def exec_command(self, cmd, in_data=None, sudoable=True):
        told = Path(__file__).with_name(f"told-{self._play_context.remote_addr}")
        if "AnsiballZ_runtime_release_info.py" in cmd and "chmod" not in cmd and told.exists():
            first, *others = told.read_text().splitlines()
            told.write_text("\\n".join(others or [first]))
            return 0, first.encode(), b""
        return super().exec_command(cmd, in_data=in_data, sudoable=sudoable)
"""


IGNORED = ["registry", "registry_tls", "content"]


@pytest.fixture
def inventory(tmp_path: Path) -> Path:
    """Write an inventory of two devices and their mirror."""
    (tmp_path / "until_changed.py").write_text(CONNECTION)
    (tmp_path / "fleet.lock.yml").write_text(yaml.safe_dump(one_model_lock("127.0.0.1:1", 1000, 1000)))
    (tmp_path / "ca.crt").write_text(certificate(datetime(2059, 12, 31, tzinfo=UTC)))
    return tmp_path / "hosts.yml"


def run(
    inventory: Path, of_devices: Mapping[str, Any] | None = None, **rollout: Any
) -> subprocess.CompletedProcess[str]:
    """Carry out a rollout over two devices, in which every host is lost when something would change on it.

    `of_devices` are further variables of the devices.
    """
    directory = inventory.parent
    variables: dict[str, Any] = {
        "ansible_connection": "until_changed",
        "ansible_pipelining": False,
        "ansible_python_interpreter": sys.executable,
        "ansible_become": False,
        "edgeml_site": "berlin",
        "edgeml_architecture": "amd64",
        "edgeml_lock_file": str(directory / "fleet.lock.yml"),
        "edgeml_catalogue": [
            {"name": "digits", "version": "1.0.0", "platform": "onnxruntime_onnx", "source": "models/digits"}
        ],
        "edgeml_runtimes": [{"name": "runtime", "recipe": "image.yml"}],
        "edgeml_models": [{"name": "digits"}],
        "edgeml_signatures": "ignored",
        "edgeml_preflight_ignore": IGNORED,
        "edgeml_ca_certificate_file": str(directory / "ca.crt"),
        "site_mirror_store": "127.0.0.1:1",
        "edgeml_store_password": "none",
        "inference_runtime_directory": str(directory / "root"),
        "inference_runtime_configuration_directory": str(directory / "configuration"),
        "site_mirror_tls_certificate_file": str(directory / "ca.crt"),
        "site_mirror_tls_key_file": str(directory / "ca.crt"),
        "site_mirror_directory": str(directory / "mirror"),
        "site_mirror_configuration_directory": str(directory / "mirror-configuration"),
    }
    hosts = {name: {"ansible_host": name} for name in ("one", "two", "mirror")}
    groups = {
        "devices": {
            "hosts": {name: hosts[name] for name in ("one", "two")},
            "vars": {"edgeml_rollout": rollout, **(of_devices or {})},
        },
        "mirrors": {"hosts": {"mirror": hosts["mirror"]}},
    }
    inventory.write_text(yaml.safe_dump({"all": {"children": groups, "vars": variables}}))
    command = [str(Path(sys.executable).with_name("ansible-playbook")), f"-i{inventory}", "edgeml.fleet.rollout"]
    environment = {**os.environ, "ANSIBLE_CONNECTION_PLUGINS": str(directory)}
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def ledger(inventory: Path) -> list[dict[str, Any]]:
    lines = inventory.with_name("fleet.ledger.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("mirror", ["is lost", "fails"])
def test_a_wave_that_loses_all_its_hosts_before_their_release_ends_the_rollout(inventory: Path, mirror: str) -> None:
    if mirror == "fails":
        inventory.with_name("fails-mirror").touch()
    done = run(inventory, first=1)
    words = " ".join(done.stdout.split())
    print(done.stdout, done.stderr[-2000:])
    assert done.returncode == 2
    assert "Wave 1 of 2: 1 pending" in words
    assert "the rollout ends here: all 1 hosts that were to do were lost: one: It was lost in its wave" in words
    assert ", 0 done, 0 failed, 1 not begun, 1 pending" in words
    outcomes = [(line["host"], line["outcome"]) for line in ledger(inventory)]
    assert sorted(outcomes) == [
        ("", "rollout_started"),
        ("", "rollout_stopped"),
        ("", "rollout_wave"),
        ("one", "pending"),
    ]
    # Before that the mirror went, or failed, when it was brought up to date. Each costs one attempt to connect.
    unreachable = {"mirror": int(mirror == "is lost"), "one": 1, "two": 0}
    for host, times in unreachable.items():
        assert f"{host} : ok=" in words
        assert f"unreachable={times} " in words.partition(f"{host} : ok=")[2]
        assert done.stdout.count(f"fatal: [{host}]: UNREACHABLE!") == times
    failed = "This mirror is not up to date, see above: Look at the engine"
    assert (failed in words) is (mirror == "fails")


@pytest.mark.parametrize("mirror", ["is lost", "fails"])
def test_devices_wait_for_what_a_mirror_lacks_that_was_not_brought_up_to_date(inventory: Path, mirror: str) -> None:
    if mirror == "fails":
        inventory.with_name("fails-mirror").touch()
    done = run(inventory, of_devices={"edgeml_preflight_ignore": []}, first=1)
    words = " ".join(done.stdout.split())
    print(done.stdout, done.stderr[-2000:])
    assert done.returncode == (2 if mirror == "fails" else 0)
    assert "Wave 2 of 2: 1 pending" in words
    assert ", 0 done, 0 failed, 0 not begun, 2 pending" in words
    assert not inventory.with_name("lost-one").exists(), "nothing was tried on a device"
    pending = {line["host"]: line["reason"] for line in ledger(inventory) if line["outcome"] == "pending"}
    assert set(pending) == {"one", "two"}
    assert all(reason.startswith("Its mirror could not be brought up to date: ") for reason in pending.values())


def test_a_host_that_is_lost_while_it_goes_back_is_told_and_ends_nothing(inventory: Path) -> None:
    """One failed after its release took over, and is lost when it is to go back."""
    inventory.with_name("fails-one").touch()
    answers = [{"changed": False, **told(name, previous=release("o"))} for name in ("o", "n")]
    inventory.with_name("told-one").write_text("\n".join(map(json.dumps, answers)))
    done = run(inventory, first=1, rollback=True)
    words = " ".join(done.stdout.split())
    print(done.stdout, done.stderr[-2000:])
    assert done.returncode == 2
    assert "going back: one" in words
    assert "Back at the release before: none one: It was lost while it was to go back" in words
    last = [line for line in ledger(inventory) if line["host"] == "one"][-1]
    assert (last["outcome"], last["rollout"]) == ("failed", "4.1")
    assert last["reason"].startswith("It was lost while it was to go back")
    assert "one : ok=" in words
    assert "TASK [Say why]" in done.stdout
