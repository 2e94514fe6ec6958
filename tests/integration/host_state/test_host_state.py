# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module host_state through ansible-playbook: who is converged, and who is left alone."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PLAY = """
- hosts: all
  gather_facts: false
  tasks:
    - name: Compare
      edgeml.fleet.host_state:
        documents: {part: document}
        group: pending
        force: "{{ forced | default(false) }}"
        directory: "{{ directory }}"
      register: comparison
      changed_when: false
    - name: Show
      ansible.builtin.debug: {msg: "ANSWER {{ comparison | to_json }} END"}
- hosts: "{{ groups.pending | default([]) }}"
  gather_facts: false
  tasks:
    - name: Converge
      ansible.builtin.copy: {content: "{{ text }}", dest: "{{ directory }}.file", mode: "0644"}
    - name: Record
      edgeml.fleet.host_state:
        state: recorded
        section: part
        document: "{{ document }}"
        evidence: [{kind: file, path: "{{ directory }}.file"}]
        note: {measured: 3}
        directory: "{{ directory }}"
"""


@pytest.fixture
def run(tmp_path: Path) -> Any:
    (tmp_path / "play.yml").write_text(PLAY)

    def play(*arguments: str, code: int = 0, **variables: Any) -> tuple[dict[str, Any], set[str], str]:
        """Return what the comparison answered, the tasks that ran on the host, and all output."""
        given = {
            "directory": str(tmp_path / "converged"),
            "text": "one",
            "document": "{{ {'text': text, 'for': ansible_facts.edgeml_host.architecture} }}",
            **variables,
        }
        # In a file, since a variable of the command line that looks like a template is none.
        (tmp_path / "inventory.yml").write_text(
            json.dumps({"all": {"hosts": {"host": {"ansible_connection": "local"}}, "vars": given}})
        )
        program = Path(sys.executable).with_name("ansible-playbook")
        done = subprocess.run(
            [program, "-i", tmp_path / "inventory.yml", tmp_path / "play.yml", *arguments],
            capture_output=True, text=True, cwd=tmp_path,
            env={**os.environ, "ANSIBLE_CALLBACK_RESULT_FORMAT": "json", "ANSIBLE_INJECT_FACT_VARS": "false",
                 "ANSIBLE_PYTHON_INTERPRETER": sys.executable, "ANSIBLE_CONFIG": ""},
        )  # fmt: skip
        assert done.returncode == code, done.stdout + done.stderr
        shown = re.search(r"ANSWER (\{.*\}) END", done.stdout)
        answer = json.loads(json.loads(f'"{shown[1]}"')) if shown else {}
        ran = set(re.findall(r"TASK \[(\w+)\] \**\n(?:ok|changed)", done.stdout))
        return answer, ran, done.stdout

    return play


def test_host_is_converged_once(run: Any) -> None:
    answer, ran, _ = run()
    assert answer["reasons"] == {"part": ["no converge has been recorded on this host"]}
    assert ran == {"Compare", "Show", "Converge", "Record"}
    answer, ran, output = run()
    assert (answer["unchanged"], answer["reasons"], answer["notes"]) == (True, {}, {"part": {"measured": 3}})
    assert ran == {"Compare", "Show"}
    assert "changed=0" in output


def test_another_document_is_seen(run: Any) -> None:
    run()
    answer, ran, _ = run(text="two")
    assert answer["reasons"] == {"part": ["the inventory, the lock or the collection says something else"]}
    assert answer["changed_documents"] == ["part"]
    assert "Converge" in ran
    assert run(text="two")[1] == {"Compare", "Show"}


def test_drift_is_seen_and_repaired(run: Any, tmp_path: Path) -> None:
    run()
    (tmp_path / "converged.file").write_text("by hand")
    answer, _, _ = run("--check")
    assert answer["changed_documents"] == []
    assert "is not as it was" in answer["reasons"]["part"][0]
    assert (tmp_path / "converged.file").read_text() == "by hand"
    assert "Converge" in run()[1]
    assert (tmp_path / "converged.file").read_text() == "one"
    assert run()[0]["unchanged"]


def test_check_mode_records_nothing(run: Any, tmp_path: Path) -> None:
    run("--check")
    assert not (tmp_path / "converged").exists()


def test_switch_forces_the_whole_way(run: Any) -> None:
    run()
    answer, ran, _ = run(forced=True, document={"text": "one"})
    assert answer["reasons"] == {"run": ["every host is asked for"]}
    assert "Converge" in ran


def test_mistake_in_a_document_is_left_to_preflight(run: Any) -> None:
    run()
    answer, _, _ = run("--check", document="{{ no_such_variable }}", code=2)
    assert "no_such_variable" in answer["reasons"]["part"][0]


def test_host_out_of_reach_is_left_to_preflight(tmp_path: Path) -> None:
    """The comparison itself does not fail: the group gets the host, and preflight's table says what is wrong."""
    (tmp_path / "play.yml").write_text(PLAY.partition('- hosts: "{{')[0])
    nowhere = {"ansible_connection": "ssh", "ansible_host": "127.0.0.1", "ansible_port": 1, "document": {}}
    hosts = {"away": {**nowhere, "directory": str(tmp_path)}}
    (tmp_path / "inventory.yml").write_text(json.dumps({"all": {"hosts": hosts}}))
    program = Path(sys.executable).with_name("ansible-playbook")
    done = subprocess.run(
        [program, "-i", tmp_path / "inventory.yml", tmp_path / "play.yml"],
        capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "ANSIBLE_CONFIG": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "it cannot be reached" in done.stdout
