# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Jobs in AWX's layout. AWX itself does no more than write these files and call ansible-runner."""

from __future__ import annotations

import json
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

import ansible_runner


def imported_inventory(source: Path, directory: Path) -> dict[str, Any]:
    """Return an inventory as an update of its source leaves it in AWX; `directory` is that of the update."""
    found, errors = ansible_runner.get_inventory(
        action="list", inventories=[str(source)], response_format="json", private_data_dir=str(directory), quiet=True,
    )  # fmt: skip
    assert isinstance(found, dict), errors
    return found


def write_job(
    directory: Path, repository: Path, inventory: dict[str, Any], variables: str, left_out: Collection[str] = ()
) -> Path:
    """Write the private data directory of a job: the project, a script that prints the inventory without some of its
    hosts, and the text of the extra variables."""
    for name in ("inventory", "env"):
        (directory / name).mkdir(parents=True)
    (directory / "project").symlink_to(repository)
    sliced: dict[str, Any] = json.loads(json.dumps(inventory))
    for name, group in sliced.items():
        if name == "_meta":
            group["hostvars"] = {host: values for host, values in group["hostvars"].items() if host not in left_out}
        elif "hosts" in group:
            group["hosts"] = [host for host in group["hosts"] if host not in left_out]
    script = directory / "inventory" / "hosts"
    script.write_text(f"#!{sys.executable}\nprint({json.dumps(sliced)!r})\n")
    script.chmod(0o700)
    (directory / "env" / "extravars").write_text(variables)
    return directory


def run_job(directory: Path, playbook: str, **options: Any) -> ansible_runner.Runner:
    """Run a playbook of the project; `options` are those of ansible_runner.run."""
    return ansible_runner.run(
        private_data_dir=str(directory), playbook=f"playbooks/{playbook}.yml",
        inventory=str(directory / "inventory" / "hosts"), quiet=True, **options,
    )  # fmt: skip
