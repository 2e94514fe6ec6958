# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Starts a container at boot whose address may come after the engine, which tries it once and never again."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from pathlib import Path

from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._host.command import RunCommand
from ansible_collections.edgeml.fleet.plugins.module_utils._host.files import replace_file

UNIT = """\
[Unit]
Description=Start the container {name} as soon as its address is there
After=docker.service

[Service]
ExecStart=/bin/sh -c 'until docker container start {name}; do sleep 5; done'

[Install]
WantedBy=multi-user.target
"""


def waits_for_address(publish: Sequence[str]) -> bool:
    """Return whether a published port is at an address that a host may not have yet when its engine starts."""
    for port in publish:
        found = re.match(r"\[([0-9A-Fa-f:.]+)\]:|([0-9.]+):\d+:", port)
        if found:
            address = ipaddress.ip_address(found[1] or found[2])
            if not address.is_unspecified and not address.is_loopback:
                return True
    return False


def start_at_boot(name: str, wanted: bool, run: RunCommand, check_mode: bool, root: Path = Path("/")) -> bool:
    """Have systemd start the container at boot, or not any more; return whether that changes anything.

    Where there is no systemd, nothing does.
    """
    if not (root / "run/systemd/system").is_dir():
        return False
    unit = f"{name}.service"
    path = root / "etc/systemd/system" / unit
    text = UNIT.format(name=name) if wanted else ""
    if (path.read_text() if path.exists() else "") == text:
        return False
    if check_mode:
        return True
    if wanted:
        replace_file(path, text.encode())
        _systemctl(run, "daemon-reload")
        _systemctl(run, "enable", "--quiet", unit)
    else:
        _systemctl(run, "disable", "--now", "--quiet", unit)
        path.unlink()
        _systemctl(run, "daemon-reload")
    return True


def _systemctl(run: RunCommand, *words: str) -> None:
    code, out, err = run(["systemctl", *words])
    if code != 0:
        raise FleetError(
            "The container's start at boot cannot be arranged",
            where=f"systemctl {' '.join(words)}",
            seen=(err or out).strip(),
            remedy="correct what systemd names, then run again",
        )
