# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Kernel settings on a tree of files that stands for a host."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._host.kernel import (
    MODULES_FILE,
    RECORD_FILE,
    SYSCTLS_FILE,
    KernelSettings,
)


class Host:
    """Files for /proc/sys and /sys/module, and a modprobe that knows two modules."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name, value in {"vm/swappiness": "60\n", "net/ipv4/tcp_rmem": "4096\t131072\t6291456\n"}.items():
            path = root / "proc/sys" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(value)
        (root / "sys/module").mkdir(parents=True)
        self.settings = KernelSettings(self.run, root)

    def run(self, command: list[str]) -> tuple[int, str, str]:
        assert command[0] == "modprobe"
        module = self.root / "sys/module" / command[-1].replace("-", "_")
        if command[1] == "--remove":
            module.rmdir()
        elif command[1] in ("v4l2loopback", "snd-dummy"):
            module.mkdir()
        else:
            return 1, "", f"modprobe: FATAL: Module {command[1]} not found"
        return 0, "", ""

    def apply(
        self,
        modules: list[str] | None = None,
        sysctls: dict[str, str] | None = None,
        optional: dict[str, str] | None = None,
        check_mode: bool = False,
    ) -> bool:
        result = self.settings.apply(modules or [], sysctls or {}, optional or {}, check_mode=check_mode)
        self.skipped: list[str] = result["skipped"]
        self.plan: list[tuple[str | None, ...]] = [tuple(entry.values()) for entry in result["plan"]]
        return bool(result["changed"])

    def value(self, name: str) -> str:
        return (self.root / "proc/sys" / name).read_text().strip()

    def loaded(self) -> set[str]:
        return {path.name for path in (self.root / "sys/module").iterdir()}


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_set_now_and_at_every_start_and_put_back(host: Host) -> None:
    wanted = (["snd-dummy"], {"vm.swappiness": "10"})
    assert host.apply(*wanted, check_mode=True)
    assert (host.value("vm/swappiness"), host.loaded()) == ("60", set())
    assert host.apply(*wanted)
    assert (host.value("vm/swappiness"), host.loaded()) == ("10", {"snd_dummy"})
    assert (host.root / SYSCTLS_FILE).read_text().splitlines()[1:] == ["vm.swappiness = 10"]
    assert (host.root / MODULES_FILE).read_text().splitlines()[1:] == ["snd-dummy"]
    assert not host.apply(*wanted)
    assert not host.apply(*wanted, check_mode=True)

    assert host.apply([], {}, check_mode=True)
    assert host.apply([], {})
    assert (host.value("vm/swappiness"), host.loaded()) == ("60", set())
    assert not any((host.root / path).exists() for path in (SYSCTLS_FILE, MODULES_FILE, RECORD_FILE))
    assert not host.apply([], {})


def test_the_plan_is_the_same_before_and_for_what_was_done(host: Host) -> None:
    wanted = (["snd-dummy"], {"vm.swappiness": "10"})
    expected: list[tuple[str | None, ...]] = [
        ("module", "snd-dummy", "not loaded", "loaded"),
        ("sysctl", "vm.swappiness", "60", "10"),
    ]
    for check_mode in (True, False):
        host.apply(*wanted, check_mode=check_mode)
        assert host.plan == expected
    (host.root / MODULES_FILE).write_text("# by hand\n")
    for check_mode in (True, False):
        assert host.apply(*wanted, check_mode=check_mode)
        assert host.plan == [("file", f"/{MODULES_FILE}", "differs", "written")]
    for check_mode in (True, False):
        host.apply(check_mode=check_mode)
        assert host.plan == [(kind, name, after, before) for kind, name, before, after in expected]
    host.apply()
    assert host.plan == []


def test_drift_is_repaired_and_the_first_value_remembered(host: Host) -> None:
    host.apply(sysctls={"vm.swappiness": "10"})
    (host.root / "proc/sys/vm/swappiness").write_text("30")
    assert host.apply(sysctls={"vm.swappiness": "10"})
    assert host.apply(sysctls={"vm.swappiness": "20"})
    host.apply()
    assert host.value("vm/swappiness") == "60"


def test_a_module_that_was_loaded_before_stays(host: Host) -> None:
    (host.root / "sys/module/v4l2loopback").mkdir()
    assert host.apply(["v4l2loopback"]), "at the next start it may not be"
    host.apply()
    assert host.loaded() == {"v4l2loopback"}


def test_columns_may_be_written_with_single_spaces(host: Host) -> None:
    host.apply(sysctls={"net.ipv4.tcp_rmem": "4096 131072 6291456"})
    assert host.value("net/ipv4/tcp_rmem") == "4096\t131072\t6291456"


def test_optional_parameters_are_skipped_where_the_kernel_lacks_them(host: Host) -> None:
    migrate = {"net.ipv4.tcp_migrate_req": "1"}
    assert not host.apply(optional=migrate)
    assert "net.ipv4.tcp_migrate_req" in host.skipped[0]
    (host.root / "proc/sys/net/ipv4/tcp_migrate_req").write_text("0\n")
    assert host.apply(optional=migrate)
    assert (host.value("net/ipv4/tcp_migrate_req"), host.skipped) == ("1", [])


def test_what_the_kernel_lacks_is_named(host: Host) -> None:
    with pytest.raises(FleetError, match=r"no parameter vm\.swapiness") as caught:
        host.apply(sysctls={"vm.swapiness": "10"})
    assert "requires.sysctls" in caught.value.remedy
    with pytest.raises(FleetError, match="module v4l3 cannot be loaded"):
        host.apply(["v4l3"])
    assert not (host.root / MODULES_FILE).exists()


def test_the_record_says_what_was_before(host: Host) -> None:
    host.apply(["v4l2loopback"], {"vm/swappiness": "10"})
    record = json.loads((host.root / RECORD_FILE).read_text())
    assert record == {"modules": ["v4l2loopback"], "sysctls": {"vm/swappiness": "60"}}
