# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hosts on which host_preflight cannot run."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from ansible_collections.edgeml.fleet.plugins.plugin_utils.reports.unexamined import (
    not_examined,
    result_without_module,
    unreachable,
)


@pytest.mark.parametrize(
    ("failed", "name", "seen"),
    [
        ({"module_stderr": "SyntaxError: invalid syntax"}, "python", "a Python too old for Ansible's modules"),
        ({"rc": 127, "module_stderr": "python3:\n not found"}, "python", "python3: not found"),
        ({"msg": "Missing sudo password"}, "examination", "Missing sudo password"),
    ],
)
def test_a_module_that_fails_is_a_finding(failed: dict[str, object], name: str, seen: str) -> None:
    finding = not_examined(failed)
    assert (finding.name, finding.severity, finding.value) == (name, "refuse", seen)


@pytest.mark.parametrize(
    ("failed", "seen", "variable"),
    [
        ({"msg": "Missing sudo password"}, "Missing sudo password", "--ask-become-pass"),
        ({"msg": "Incorrect sudo password"}, "Incorrect sudo password", "correct ansible_become_password"),
        (
            {
                "msg": "Module result deserialization failed: No start of json char found",
                "module_stderr": "sudo: sorry, you must have a tty to run sudo\n",
                "rc": 1,
            },
            "sudo: sorry, you must have a tty to run sudo",
            "set ansible_ssh_pipelining to false",
        ),
    ],
)
def test_what_keeps_a_module_from_root_names_the_variable(failed: dict[str, object], seen: str, variable: str) -> None:
    finding = not_examined(failed)
    assert (finding.name, finding.severity, finding.value) == ("examination", "refuse", seen)
    assert variable in finding.remedy


@pytest.mark.parametrize(
    ("failed", "seen"),
    [
        (
            {"exception": SimpleNamespace(event=SimpleNamespace(msg="port must be 0-65535."))},
            "port must be 0-65535.",
        ),
        ({"exception": "Traceback:\n  File x\nOverflowError: no port\n"}, "OverflowError: no port"),
        ({"failed": True, "_ansible_parsed": True}, "the module ended without a message"),
    ],
)
def test_a_message_and_never_a_mapping_is_shown(failed: dict[str, object], seen: str) -> None:
    assert not_examined(failed).value == seen


def test_a_host_that_is_away_does_not_hold_up_the_others() -> None:
    result = result_without_module(unreachable("no route\nto host"), {})
    assert [finding["name"] for finding in result["findings"]] == ["unreachable"]
    assert result["msg"] == ""
    ignored = result_without_module(not_examined({"msg": "sudo"}), {"ignore": ["examination"]})
    assert ignored["msg"] == ""
