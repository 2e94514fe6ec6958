# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""How every module runs: its options in, one function, its result out. A failure keeps its parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._host.command import RunCommand


def run(
    argument_spec: Mapping[str, Any], work: Callable[[AnsibleModule], Mapping[str, Any]], **constraints: Any
) -> None:
    """Run a module that supports check mode, and end the process.

    Parameters
    ----------
    work : callable
        Does what the module is for. Returns the module's result, which has failed if it holds a true ``failed``. A
        FleetError that it raises becomes the failed result: ``msg``, ``what``, ``where``, ``seen``, ``remedy``.
    **constraints
        What AnsibleModule takes besides: ``required_if`` and the like.
    """
    module = AnsibleModule(argument_spec=dict(argument_spec), supports_check_mode=True, **constraints)
    try:
        result = {"changed": False, **work(module)}
    except FleetError as error:
        result = {"changed": False, "failed": True, **error.as_result()}
    if result.pop("failed", False):
        module.fail_json(**result)
    module.exit_json(**result)


def with_failures(failures: Sequence[FleetError], result: Mapping[str, Any]) -> dict[str, Any]:
    """Return a result that has failed if there are `failures`: the first is the module's own, all are listed."""
    if not failures:
        return dict(result)
    return {**result, "failed": True, **failures[0].as_result(), "failures": list(map(str, failures))}


def command_runner(module: AnsibleModule) -> RunCommand:
    """Return what runs a program on the module's host; one that the host lacks exits with 127."""

    def run_command(arguments: list[str], /) -> tuple[int, str, str]:
        if module.get_bin_path(arguments[0], opt_dirs=["/sbin", "/usr/sbin"]) is None:
            return 127, "", ""
        code, out, err = module.run_command(arguments)
        return int(code), str(out), str(err)

    return run_command
