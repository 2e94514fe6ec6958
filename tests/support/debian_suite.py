# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A program of any suite of Debian, unpacked and not installed."""

from __future__ import annotations

import fcntl
import os
import subprocess
from pathlib import Path

from ansible_collections.edgeml.fleet.runtime.tests.support.debian_packages import CACHE


def program_of(suite: str, package: str, path: str) -> Path:
    """Return a program that needs nothing else of its suite, such as one written in Go; it is fetched once."""
    target = CACHE / f"{package}-{suite}"
    CACHE.mkdir(parents=True, exist_ok=True)
    with target.with_name(f"{target.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # tests run in several processes
        if not target.exists():
            archive = target.with_suffix(".tar")
            command = ["mmdebstrap", "--quiet", "--mode=root" if os.geteuid() == 0 else "--mode=unshare"]
            # A mirror that is kept for long has lists that are past their date; their signatures are checked.
            command += ["--aptopt=Acquire::Check-Valid-Until false", "--variant=extract", f"--include={package}"]
            subprocess.run([*command, suite, archive], check=True)
            partial = target.with_suffix(".partial")
            partial.mkdir(exist_ok=True)
            subprocess.run(["tar", "-xf", archive, "-C", partial, f"./{path}"], check=True)
            archive.unlink()
            partial.rename(target)
    return target / path
