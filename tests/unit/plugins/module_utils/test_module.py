# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The funnel of all modules: what a module's function returns or raises, and what Ansible gets of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.testing import patch_module_args
from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._module import command_runner, run, with_failures

Work = Callable[[AnsibleModule], Mapping[str, Any]]
FULL = FleetError("The disk is full", where="/var", seen="0 bytes free", remedy="free disk space")
OTHER = FleetError("Port 8000 is already taken", where="127.0.0.1:8000")


@pytest.fixture
def result(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, dict[str, Any]]]:
    def run_module(work: Work, **arguments: Any) -> tuple[int, dict[str, Any]]:
        with patch_module_args(arguments), pytest.raises(SystemExit) as end:
            run({"name": {"type": "str"}, "size": {"type": "int"}}, work, required_together=[("name", "size")])
        return int(str(end.value.code)), json.loads(capsys.readouterr().out)

    return run_module


Result = Callable[..., tuple[int, dict[str, Any]]]


def test_a_result_goes_out_as_it_is(result: Result) -> None:
    code, seen = result(lambda module: {"changed": True, "size": module.params["size"]}, name="a", size="7")
    assert (code, seen["changed"], seen["size"]) == (0, True, 7)
    assert not seen.get("failed")


def test_what_says_nothing_of_a_change_changed_nothing(result: Result) -> None:
    assert result(lambda module: {})[1]["changed"] is False


def test_a_failure_keeps_its_parts(result: Result) -> None:
    def work(module: AnsibleModule) -> dict[str, Any]:
        raise FULL

    code, seen = result(work)
    assert code == 1
    assert seen["failed"]
    assert {key: seen[key] for key in ("what", "where", "seen", "remedy")} == {
        "what": "The disk is full",
        "where": "/var",
        "seen": "0 bytes free",
        "remedy": "free disk space",
    }
    assert seen["msg"] == str(FULL)


def test_several_failures_leave_the_result_beside_them(result: Result) -> None:
    code, seen = result(lambda module: with_failures([FULL, OTHER], {"models": ["digits"]}))
    assert code == 1
    assert (seen["what"], seen["models"]) == ("The disk is full", ["digits"])
    assert seen["failures"] == [str(FULL), str(OTHER)]
    assert result(lambda module: with_failures([], {"models": []}))[0] == 0


def test_constraints_between_options_are_checked(result: Result) -> None:
    code, seen = result(lambda module: {}, name="a")
    assert code == 1
    assert "required together: name, size" in seen["msg"]


def test_a_program_that_the_host_lacks(result: Result) -> None:
    def work(module: AnsibleModule) -> dict[str, Any]:
        run_command = command_runner(module)
        return {"there": run_command(["echo", "yes"]), "absent": run_command(["edgeml-no-such-program"])}

    seen = result(work)[1]
    assert (seen["there"], seen["absent"]) == ([0, "yes\n", ""], [127, "", ""])
