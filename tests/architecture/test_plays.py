# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Plays run as they stand, whatever a user's Ansible is set to: those of playbooks and of the roles' pages."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from .role_readme import EXAMPLES, ROLES
from .test_architecture import ROOT, called_entry_points, load


def test_a_play_with_a_task_that_speaks_of_all_hosts_says_so() -> None:
    """Only the strategy linear has such tasks; a user's ANSIBLE_STRATEGY may be another."""
    speaking = [
        f"edgeml.fleet.{path.stem}:"
        for path in (ROOT / "plugins/action").glob("*.py")
        if "BYPASS_HOST_LOOP = True" in path.read_text()
    ]
    assert len(speaking) > 5

    def speaks(play: Any) -> bool:
        called = [(ROLES / role / "tasks" / f"{entry}.yml").read_text() for role, entry in called_entry_points(play)]
        return any(name in text for name in speaking for text in (yaml.safe_dump(play), *called))

    plays = [(path.name, play) for path in sorted((ROOT / "playbooks").glob("*.yml")) for play in load(path)]
    wrong = {f"{name}: {play['name']}" for name, play in plays if speaks(play) and play.get("strategy") != "linear"}
    assert wrong == set()


def test_the_play_of_each_roles_page_is_one() -> None:
    """Its role is called with variables that the role has, by a play that Ansible takes."""
    assert {path.stem for path in EXAMPLES.glob("*.yml")} == {path.name for path in ROLES.iterdir()}
    program = Path(sys.executable).with_name("ansible-playbook")
    done = subprocess.run(
        [program, "--syntax-check", "--inventory", "localhost,", *sorted(EXAMPLES.glob("*.yml"))],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    known = set(json.loads((ROOT / "meta/schemas/variables.schema.json").read_text())["properties"])
    for role in ROLES.iterdir():
        specs = load(role / "meta/argument_specs.yml")["argument_specs"]
        known |= {name for spec in specs.values() for name in spec["options"]}
    ours = ("edgeml_", *(f"{role.name}_" for role in ROLES.iterdir()))
    said = {name for path in EXAMPLES.glob("*.yml") for name in keys(load(path)) if name.startswith(ours)}
    assert len(said) > 10
    assert said - known == set()


def keys(value: Any) -> set[str]:
    """Return all keys of a document."""
    if isinstance(value, dict):
        return set(value) | {key for one in value.values() for key in keys(one)}
    return {key for one in value for key in keys(one)} if isinstance(value, list) else set()
