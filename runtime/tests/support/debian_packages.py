# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Programs of Debian's packages for tests, unpacked and not installed: no service is started."""

import fcntl
import os
import platform
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

CACHE = Path(__file__).resolve().parents[3] / "build" / "cache"


def unpacked(name: str, packages: Sequence[str]) -> Path:
    """Return a directory that holds what these packages hold; it is made once for each release of Debian.

    Their dependencies are not fetched.
    """
    target = CACHE / f"{name}-{platform.freedesktop_os_release()['VERSION_CODENAME']}"
    CACHE.mkdir(parents=True, exist_ok=True)
    with target.with_name(f"{target.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # tests run in several processes
        if target.exists():
            return target
        with tempfile.TemporaryDirectory(dir=CACHE) as directory:
            work = Path(directory)
            # Package lists of its own: works for every user, and on a machine whose lists are old or missing.
            (work / "lists" / "partial").mkdir(parents=True)
            (work / "cache" / "archives" / "partial").mkdir(parents=True)
            apt = ["apt-get", "-q", "-o", f"Dir::State::Lists={work}/lists", "-o", f"Dir::Cache={work}/cache"]
            apt += ["-o", "APT::Sandbox::User=root"]
            subprocess.run([*apt, "update"], check=True)
            subprocess.run([*apt, "download", *packages], check=True, cwd=work)
            for package in work.glob("*.deb"):
                subprocess.run(["dpkg-deb", "-x", package, work / "unpacked"], check=True)
            (work / "unpacked").rename(target)
    return target


def with_libraries(programs: Path) -> dict[str, str]:
    """Return this process's environment, in which what `unpacked` returned finds its own libraries."""
    libraries = [path for path in (*programs.glob("usr/lib/*"), *programs.glob("lib/*")) if path.is_dir()]
    return {**os.environ, "LD_LIBRARY_PATH": ":".join(map(str, libraries))}
