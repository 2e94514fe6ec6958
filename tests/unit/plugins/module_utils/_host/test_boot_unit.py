# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A container at an address that comes late is started when it comes."""

from __future__ import annotations

import configparser
import shlex
import subprocess
from pathlib import Path

import pytest
from ansible_collections.edgeml.fleet.plugins.module_utils._host.boot_unit import start_at_boot, waits_for_address


class Systemd:
    """A host's systemd, which remembers what it was told."""

    def __init__(self, root: Path, booted: bool = True) -> None:
        self.root, self.told = root, list[list[str]]()
        (root / "etc/systemd/system").mkdir(parents=True)
        if booted:
            (root / "run/systemd/system").mkdir(parents=True)

    def run(self, arguments: list[str], /) -> tuple[int, str, str]:
        self.told.append(arguments[1:])
        return 0, "", ""

    def apply(self, wanted: bool, check_mode: bool = False) -> bool:
        return start_at_boot("edgeml-mirror", wanted, self.run, check_mode, self.root)


@pytest.mark.parametrize(
    ("publish", "waits"),
    [
        ("10.77.20.10:5443:5443", True),
        ("[2001:db8::5]:5443:5443", True),
        ("0.0.0.0:5443:5443", False),
        ("[::]:5443:5443", False),
        ("127.0.0.1:5000:5000", False),
        ("[::1]:5000:5000", False),
        ("5000:5000", False),
    ],
)
def test_addresses_that_may_come_late(publish: str, waits: bool) -> None:
    assert waits_for_address([publish]) is waits


def test_the_unit_comes_once_and_goes(tmp_path: Path) -> None:
    systemd = Systemd(tmp_path)
    unit = tmp_path / "etc/systemd/system/edgeml-mirror.service"
    assert systemd.apply(True, check_mode=True)
    assert not unit.exists()
    assert systemd.apply(True)
    assert systemd.told == [["daemon-reload"], ["enable", "--quiet", "edgeml-mirror.service"]]
    assert not systemd.apply(True)
    assert systemd.apply(False)
    assert not unit.exists()
    assert not systemd.apply(False)


def test_without_systemd_nothing_is_arranged(tmp_path: Path) -> None:
    assert not Systemd(tmp_path, booted=False).apply(True)


def test_its_command_tries_until_the_address_is_there(tmp_path: Path) -> None:
    systemd = Systemd(tmp_path)
    systemd.apply(True)
    unit = configparser.ConfigParser(interpolation=None)
    unit.read(tmp_path / "etc/systemd/system/edgeml-mirror.service")
    programs = tmp_path / "bin"
    programs.mkdir()
    tries = tmp_path / "tries"
    (programs / "docker").write_text(f'#!/bin/sh\necho "$@" >> {tries}\n[ "$(wc -l < {tries})" -ge 3 ]\n')
    (programs / "sleep").write_text("#!/bin/sh\n")
    for program in programs.iterdir():
        program.chmod(0o755)
    command = shlex.split(unit["Service"]["ExecStart"])
    subprocess.run(command, check=True, env={"PATH": f"{programs}:/usr/bin:/bin"}, timeout=120)
    assert tries.read_text().splitlines() == ["container start edgeml-mirror"] * 3
