# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Debian's Prometheus and Chromium for the report's tests."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.edgeml.fleet.plugins.plugin_utils.reports.files import write_reports
from ansible_collections.edgeml.fleet.plugins.plugin_utils.reports.fleet import collect
from ansible_collections.edgeml.fleet.plugins.plugin_utils.reports.fleet_files import fleet_texts
from ansible_collections.edgeml.fleet.runtime.tests.support.debian_packages import CACHE, unpacked
from ansible_collections.edgeml.fleet.tests.support.browser import Page, browser

PACKAGES = ("prometheus", "prometheus-node-exporter")


def write(directory: Path, hosts: dict[str, dict[str, Any]], lines: Any = (), now: Any = None) -> dict[str, Any]:
    """Write the report of a fleet as the action does, and return it."""
    report = collect(hosts, list(hosts), "example", lines, now)
    write_reports(fleet_texts(str(directory), report), "edgeml_report")
    return report


@pytest.fixture(scope="session")
def prometheus() -> Path:
    """Return a directory with Debian's Prometheus, promtool and node_exporter, unpacked and not installed."""
    return unpacked("prometheus", PACKAGES) / "usr" / "bin"


@pytest.fixture(scope="session")
def chromium() -> str:
    """Return the program of Debian's Chromium; it is installed if it is missing, since it needs many libraries."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "chromium.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not shutil.which("chromium"):
            root = [] if os.geteuid() == 0 else ["sudo"]
            apt = [*root, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-q", "-o", "DPkg::Lock::Timeout=300"]
            subprocess.run([*apt, "update"], check=True)
            subprocess.run([*apt, "install", "-y", "--no-install-recommends", "chromium"], check=True)
    return "chromium"


@pytest.fixture(scope="session")
def page(chromium: str) -> Iterator[Page]:
    with browser(chromium) as opened:
        yield opened
