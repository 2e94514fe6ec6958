# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""How the shared code runs a program on the host."""

from __future__ import annotations

from typing import Protocol


class RunCommand(Protocol):
    """Runs a program as AnsibleModule.run_command does: arguments -> (exit code, stdout, stderr)."""

    def __call__(self, arguments: list[str], /) -> tuple[int, str, str]: ...
