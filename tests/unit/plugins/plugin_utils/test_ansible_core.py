# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""An ansible-core that is too old is refused in one line."""

from __future__ import annotations

import ast
import importlib
import sys
from pathlib import Path

import ansible.release
import pytest
import yaml
from ansible.errors import AnsibleError
from ansible_collections.edgeml.fleet.plugins.plugin_utils.ansible_core import FLOOR, refusal

ROOT = Path(__file__).resolve().parents[4]
PACKAGE = "ansible_collections.edgeml.fleet.plugins.plugin_utils"


@pytest.mark.parametrize("version", ["2.9.27", "2.16.19", "2.18.19"])
def test_an_older_ansible_core_is_refused_whatever_is_imported(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ansible.release, "__version__", version)
    monkeypatch.delitem(sys.modules, PACKAGE)
    monkeypatch.delitem(sys.modules, f"{PACKAGE}.addresses", raising=False)
    with pytest.raises(AnsibleError) as refused:
        importlib.import_module(f"{PACKAGE}.addresses")
    message = str(refused.value)
    assert f"needs ansible-core 2.19 or newer, {version} was seen" in message
    assert "\n" not in message


@pytest.mark.parametrize("version", ["2.19.0", "2.19.0rc1", "2.20.10", "2.21.5", "3.0.0"])
def test_what_is_new_enough_is_not(version: str) -> None:
    assert refusal(version) == ""


@pytest.mark.parametrize("name", ["__init__", "ansible_core"])
def test_the_refusal_can_be_read_by_the_python_of_an_older_ansible_core(name: str) -> None:
    ast.parse((ROOT / "plugins" / "plugin_utils" / f"{name}.py").read_text(), feature_version=(3, 8))


def test_the_version_that_is_named_is_the_one_that_is_required() -> None:
    runtime = yaml.safe_load((ROOT / "meta" / "runtime.yml").read_text())
    assert runtime["requires_ansible"] == f">={FLOOR[0]}.{FLOOR[1]}.0"
