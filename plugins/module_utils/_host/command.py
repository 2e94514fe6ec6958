# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""How the shared code runs a program on the host."""

from __future__ import annotations

import os
import subprocess
from typing import Protocol


class RunCommand(Protocol):
    """Runs a program as AnsibleModule.run_command does: arguments -> (exit code, stdout, stderr)."""

    def __call__(self, arguments: list[str], /) -> tuple[int, str, str]: ...


def run_program(arguments: list[str], /) -> tuple[int, str, str]:
    """Run a program as RunCommand says, from a process that is no module; one that the host lacks exits with 127."""
    environment = {**os.environ, "LC_ALL": "C.UTF-8"}
    try:
        done = subprocess.run(
            arguments,
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            env=environment,
        )
    except FileNotFoundError:
        return 127, "", f"{arguments[0]}: not found"
    return done.returncode, done.stdout, done.stderr
