# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Compare inference servers: see README.md. Makes the benchmark's own environment and goes on in it."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from serving_bench.environments import make_environment
from serving_bench.options import read_options
from serving_bench.places import BENCHMARKS, RUNTIME_SOURCE

DEBIAN_PACKAGES = {"h2load": "nghttp2-client", "nghttpd": "nghttp2-server", "gcc": "gcc", "taskset": "util-linux"}


def install_packages() -> None:
    """Install what is missing of Debian's packages; asks for nothing when all is there."""
    missing = [package for command, package in DEBIAN_PACKAGES.items() if not shutil.which(command)]
    if "gcc" in missing:
        missing.append("libc6-dev")
    if not importlib.util.find_spec("ensurepip"):
        missing.append("python3-venv")
    if not missing:
        return
    print(f"installing {', '.join(missing)}", flush=True)
    prefix = [] if os.geteuid() == 0 else ["sudo"]
    subprocess.run([*prefix, "apt-get", "update", "-qq"], check=True)
    subprocess.run(
        [*prefix, "apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing],
        check=True,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
    )


def main() -> None:
    """Replace this process by the benchmark."""
    if not read_options(sys.argv[1:]).report_only:
        install_packages()
    python = make_environment("driver")
    path = os.pathsep.join([str(BENCHMARKS), str(RUNTIME_SOURCE)])
    os.execve(  # noqa: S606 - the arguments are a list
        python, [str(python), "-m", "serving_bench", *sys.argv[1:]], {**os.environ, "PYTHONPATH": path}
    )


if __name__ == "__main__":
    main()
