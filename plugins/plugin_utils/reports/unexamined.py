# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the module host_preflight would say of a host on which it cannot run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ansible_collections.edgeml.fleet.plugins.module_utils._preflight.host import (
    REFUSE,
    WARN,
    Finding,
    inventory_finding,
    judge,
    result_of,
)


def unreachable(reason: str) -> Finding:
    """Return the finding for a host that no connection reaches: what is away must not hold up the others."""
    return Finding(
        "unreachable",
        WARN,
        _line(reason),
        "a connection to the host",
        "run again when the host is back; or correct ansible_host, user and key",
    )


#: What keeps a module from root, by words of the answer: variable, value and next step.
BECOME_REMEDIES = {
    "you must have a tty": "set ansible_ssh_pipelining to false for this host, whose sudo has requiretty; or take "
    "requiretty out of its sudoers for this user",
    "sudo password": "set ansible_become_password for this host (in a vault), or run with --ask-become-pass",
    "incorrect": "correct ansible_become_password, or what --ask-become-pass was told",
}


def not_examined(result: Mapping[str, Any]) -> Finding:
    """Return the finding for a host on which the module failed before it found anything."""
    said = result.get("module_stderr") or result.get("module_stdout")
    seen = _line(result.get("msg") or said or _raised(result.get("exception")))
    if "deserialization" in seen and said:  # something else answered in the module's place
        seen = _line(said)
    if "SyntaxError" in result.get("module_stderr", ""):
        seen = "a Python too old for Ansible's modules"
    elif result.get("rc") != 127 and "interpreter" not in seen and "Python version" not in seen:
        remedies = [remedy for words, remedy in BECOME_REMEDIES.items() if words in seen.lower()]
        return Finding(
            "examination",
            REFUSE,
            seen,
            "that a module can run on the host as root",
            remedies[-1] if remedies else "correct what the message names, often the become settings",
        )
    return Finding(
        "python",
        REFUSE,
        seen,
        "Python 3.8 or newer",
        "install python3 on the host, or set ansible_python_interpreter to a newer one",
    )


def result_without_module(finding: Finding | None, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the module's result for these options, with `finding` in place of what it would have found."""
    problems = [inventory_finding(problem) for problem in options.get("problems") or ()]
    ignore = options.get("ignore")
    findings = judge([finding, *problems] if finding else problems, ignore if isinstance(ignore, (list, str)) else ())
    return {**result_of(findings), "changed": False}


def _raised(exception: object) -> str:
    """Return the message of what a module raised: Ansible gives an object, and gave the text of a traceback before."""
    event = getattr(exception, "event", None)
    lines = [event.msg] if event else str(exception or "").strip().splitlines()
    return lines[-1] if lines else "the module ended without a message"


def _line(text: str) -> str:
    return " ".join(text.split())[:300]
