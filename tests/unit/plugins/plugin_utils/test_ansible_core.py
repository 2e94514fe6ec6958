# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""An ansible-core that is too old is refused in one line."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import ansible.template
import pytest
import yaml
from ansible.errors import AnsibleError
from ansible.release import __version__

MODULE = "ansible_collections.edgeml.fleet.plugins.plugin_utils.ansible_core"


def test_an_older_ansible_core_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(ansible.template, "trust_as_template")
    monkeypatch.delitem(sys.modules, MODULE, raising=False)
    with pytest.raises(AnsibleError) as refused:
        importlib.import_module(MODULE)
    message = str(refused.value)
    assert f"needs ansible-core 2.19 or newer, {__version__} was seen" in message
    assert "\n" not in message


def test_the_version_that_is_named_is_the_one_that_is_required() -> None:
    runtime = yaml.safe_load((Path(__file__).resolve().parents[4] / "meta" / "runtime.yml").read_text())
    assert runtime["requires_ansible"] == ">=2.19.0"
