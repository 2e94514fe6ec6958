# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""When a host reads anew what it keeps: after each boot and on a schedule, with the lowest priority that it has."""

from __future__ import annotations

SERVICE_UNIT = """\
[Unit]
Description=edgeml: find content that is not what its digest says, and heal it
After=docker.service network-online.target

[Service]
Type=oneshot
ExecStart={command}
Nice=19
CPUSchedulingPolicy=idle
IOSchedulingClass=idle
"""
TIMER_UNIT = """\
[Unit]
Description=edgeml: read the content of {what} anew

[Timer]
OnBootSec=2min
OnUnitInactiveSec={every}
AccuracySec=1min

[Install]
WantedBy=timers.target
"""


def scrub_units(name: str, what: str, command: str, every: str) -> dict[str, str]:
    """Return the units of systemd, by name, that carry out `command` after each boot and `every` so often."""
    return {
        f"{name}.service": SERVICE_UNIT.format(command=command),
        f"{name}.timer": TIMER_UNIT.format(what=what, every=every),
    }
