# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The role of the store makes a password where the inventory has none; whoever else needs it takes what is there."""

from __future__ import annotations

import ssl
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import trustme
import yaml
from ansible_collections.edgeml.fleet.tests.support.registry_server import Answer, start


@pytest.fixture
def state(tmp_path: Path) -> Path:
    (tmp_path / "inv" / "p").mkdir(parents=True)
    host = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
    (tmp_path / "inv" / "p" / "hosts.yml").write_text(yaml.safe_dump({"all": {"hosts": {"mir": host}}}))
    return tmp_path / "build" / "p"


def run(directory: Path, tasks: list[dict[str, Any]], *options: str) -> str:
    play = {"hosts": "all", "gather_facts": False, "tasks": tasks}
    (directory / "play.yml").write_text(yaml.safe_dump([play]))
    program = Path(sys.executable).with_name("ansible-playbook")
    done = subprocess.run(
        [program, "-i", "inv/p", "play.yml", *options], cwd=directory, capture_output=True, text=True, check=False
    )
    return done.stdout + done.stderr


SITE_MIRROR = {"name": "edgeml.fleet.site_mirror", "tasks_from": "variables", "rolespec_validate": False}
SHOW_MIRROR: list[dict[str, Any]] = [
    {"ansible.builtin.import_role": SITE_MIRROR},
    {"ansible.builtin.debug": {"msg": "password <{{ __site_mirror_preflight_registry.password }}>"}},
]


def test_a_look_at_a_mirror_makes_no_password(tmp_path: Path, state: Path) -> None:
    assert "password <>" in run(tmp_path, SHOW_MIRROR)
    assert not state.exists()


def test_a_mirror_takes_the_password_of_the_store(tmp_path: Path, state: Path) -> None:
    state.mkdir(parents=True)
    (state / "store_password").write_text("sesame\n")
    assert "password <sesame>" in run(tmp_path, SHOW_MIRROR)


def test_the_store_makes_one_and_check_mode_does_not(tmp_path: Path, state: Path) -> None:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.crt"))
    server, stop = start(context, str(tmp_path / "ca.crt"), lambda _request: Answer(200))
    verify = {
        "ansible.builtin.import_role": {"name": "edgeml.fleet.model_store", "tasks_from": "verify"},
        "vars": {
            "model_store_listen_address": "127.0.0.1",
            "model_store_port": int(server.address.rpartition(":")[2]),
        },
    }
    run(tmp_path, [verify], "--check")
    assert not state.exists()
    output = run(tmp_path, [verify])
    stop()
    assert len((state / "store_password").read_text().strip()) == 32, output
