# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is said of ansible-core is the same everywhere, and what is tried: tests/support/cores.py is the source."""

from __future__ import annotations

import re
from pathlib import Path

import yaml
from ansible_collections.edgeml.fleet.tests.support.cores import CORES, table

ROOT = Path(__file__).resolve().parents[2]
LOWEST = next(core for core in CORES if core.supported)


def test_the_lowest_that_runs_is_the_one_that_is_required() -> None:
    assert [core.supported for core in CORES] == sorted(core.supported for core in CORES)
    runtime = yaml.safe_load((ROOT / "meta" / "runtime.yml").read_text())
    assert runtime["requires_ansible"] == f">={LOWEST.minor}.0"
    for path in (ROOT / "roles").glob("*/meta/main.yml"):
        assert yaml.safe_load(path.read_text())["galaxy_info"]["min_ansible_version"] == LOWEST.minor, path


def test_what_controllers_get_by_default_is_tried() -> None:
    locked = re.search(r"^ansible-core==(\S+)", (ROOT / "requirements/controller.txt").read_text(), re.MULTILINE)
    assert locked
    assert locked[1] in [core.version for core in CORES if core.supported]


def test_pages_name_what_is_tried() -> None:
    assert table() in (ROOT / "docs" / "support-matrix.md").read_text()
    named = re.findall(r"ansible-core\s(2\.\d+)", (ROOT / "README.md").read_text())
    assert named
    assert set(named) == {LOWEST.minor}
