# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What systemd is asked when units go. Hosts with systemd are those of the lab."""

from __future__ import annotations

from pathlib import Path

import pytest
from ansible_collections.edgeml.fleet.plugins.module_utils._host import detached


def test_what_a_timer_has_begun_is_stopped_before_its_unit_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []

    def run(command: list[str]) -> tuple[int, str, str]:
        asked.append([*command[1:], *sorted(path.name for path in tmp_path.iterdir())])
        return 0, "", ""

    monkeypatch.setattr(detached, "UNITS", tmp_path)
    monkeypatch.setattr(detached, "run_program", run)
    for name in ("scrub.service", "scrub.timer"):
        (tmp_path / name).touch()
    detached.remove_units("scrub.service", "scrub.timer", "never.timer")
    both = ["scrub.service", "scrub.timer"]
    assert asked == [
        ["disable", "--now", "--quiet", "scrub.timer", *both],
        ["stop", *both, *both],
        ["daemon-reload"],
    ]
