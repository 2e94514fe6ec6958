# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Debian's Prometheus and Chromium for the report's tests."""

from __future__ import annotations

import fcntl
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.edgeml.fleet.plugins.plugin_utils.reports.files import write_reports
from ansible_collections.edgeml.fleet.plugins.plugin_utils.reports.fleet import collect
from ansible_collections.edgeml.fleet.plugins.plugin_utils.reports.fleet_files import fleet_texts
from ansible_collections.edgeml.fleet.tests.support.browser import Page, browser

PACKAGES = ("prometheus", "prometheus-node-exporter")
CACHE = Path(__file__).resolve().parents[3] / "build" / "cache"


def write(directory: Path, hosts: dict[str, dict[str, Any]], lines: Any = (), now: Any = None) -> dict[str, Any]:
    """Write the report of a fleet as the action does, and return it."""
    report = collect(hosts, list(hosts), "example", lines, now)
    write_reports(fleet_texts(str(directory), report), "edgeml_report")
    return report


@pytest.fixture(scope="session")
def prometheus() -> Path:
    """Return a directory with Debian's Prometheus, promtool and node_exporter, unpacked and not installed."""
    target = CACHE / f"prometheus-{platform.freedesktop_os_release()['VERSION_CODENAME']}"
    CACHE.mkdir(parents=True, exist_ok=True)
    with target.with_name(f"{target.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # tests run in several processes
        if not target.exists():
            with tempfile.TemporaryDirectory(dir=CACHE) as name:
                work = Path(name)
                # Package lists of its own: works for every user, and on a machine whose lists are old or missing.
                (work / "lists" / "partial").mkdir(parents=True)
                (work / "cache" / "archives" / "partial").mkdir(parents=True)
                apt = ["apt-get", "-q", "-o", f"Dir::State::Lists={work}/lists", "-o", f"Dir::Cache={work}/cache"]
                apt += ["-o", "APT::Sandbox::User=root"]
                subprocess.run([*apt, "update"], check=True)
                subprocess.run([*apt, "download", *PACKAGES], check=True, cwd=work)
                for package in work.glob("*.deb"):
                    subprocess.run(["dpkg-deb", "-x", package, work / "unpacked"], check=True)
                (work / "unpacked").rename(target)
    return target / "usr" / "bin"


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
