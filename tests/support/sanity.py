# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run `ansible-test` on the collection: `python tests/support/sanity.py [units] [option of ansible-test ...]`.

It refuses a checkout that is reached by a symbolic link, and files that Git ignores, so it gets a copy outside. Its
home is under build/: the environments that it makes for its tests stay there, and need only the package registry.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

from ansible_test._internal.python_requirements import get_venv_packages  # type: ignore[import-untyped]

ROOT = Path(__file__).resolve().parents[2]
HOME = ROOT / "build" / "environments" / "sanity"
#: What an installed collection holds.
CONTENT = ("galaxy.yml", "README.md", "CHANGELOG.md", "meta", "plugins", "roles", "playbooks")
#: What unit tests read besides. Those of models and inventories belong to pytest alone, which runs all of them.
TESTED = (*CONTENT, "tests/conftest.py", "tests/support", "tests/unit/plugins", "runtime", "requirements", "models")
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
STARTED = re.compile(r'Running sanity test "([\w-]+)"')


def copy_collection(copy: Path, content: Sequence[str]) -> None:
    """Copy the files that Git knows or would take."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", *content],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name)


def provide_pip() -> None:
    """Put a bootstrap of pip where ansible-test keeps the one that it would fetch from a server of its own."""
    version = get_venv_packages(SimpleNamespace(version=PYTHON))["pip"].replace(".", "_")
    cached = HOME / ".ansible" / "test" / "cache" / f"get_pip_{version}.py"
    cached.parent.mkdir(parents=True, exist_ok=True)
    cached.write_text("import ensurepip\n\nensurepip.bootstrap(default_pip=True)\n")


def main(options: list[str]) -> int:
    """Return the exit status."""
    command, options = ("units", options[1:]) if options[:1] == ["units"] else ("sanity", options)
    provide_pip()
    with tempfile.TemporaryDirectory(prefix="sanity-") as directory:
        copy = Path(directory) / "ansible_collections" / "edgeml" / "fleet"
        copy_collection(copy, TESTED if command == "units" else CONTENT)
        return run(copy, command, options)


def run(copy: Path, what: str, options: list[str]) -> int:
    """Return ansible-test's exit status; print what it says, and the seconds of each test."""
    program = str(Path(sys.executable).with_name("ansible-test"))
    command = [program, what, "--python", PYTHON, "--color", "no", *options]
    environment = os.environ | {"HOME": str(HOME)}
    environment.pop("ANSIBLE_CONFIG", None)
    seconds: dict[str, float] = {}
    test, since = "", time.monotonic()
    with subprocess.Popen(
        command, cwd=copy, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        for line in process.stdout or ():
            started = STARTED.search(line)
            if started:
                now = time.monotonic()
                seconds[test] = now - since
                test, since = started[1], now
            else:
                print(line, end="", flush=True)
    seconds[test] = time.monotonic() - since
    slowest = sorted(seconds.items(), key=lambda item: -item[1])
    print(f"ansible-test {what}, seconds:", ", ".join(f"{name or 'start'} {took:.0f}" for name, took in slowest))
    return process.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
