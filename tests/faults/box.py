# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A small computer inside this machine: a disk that can lose its power, an engine, and processes that end with it.

It has mounts, processes and ``/run`` of its own. Its network is the caller's, so that clients are on loopback; an
engine without a bridge removes that of another one, so the caller has a network of its own (`own_network`).
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from ansible_collections.edgeml.fleet.tests.support.content import REPOSITORY_ROOT
from ansible_collections.edgeml.fleet.tests.support.failing_disk import FailingDisk

DISK_BYTES = 4 << 30
#: Seconds that anything here may take on a slow machine.
PATIENCE = 120.0
#: The first process: it ends with whoever started it, gives up its copies of others' disks (FailingDisk.unmount), and
#: takes in what lost its parent.
PROCESS_ONE = """
mount -t tmpfs tmpfs /run
awk -v own="$0" '$1 ~ "^/dev/loop" && $2 != own && $2 != "/" {print $2}' /proc/mounts | xargs -r umount --lazy
touch /run/up
while :; do sleep 0.2; done
"""

#: The module runtime_release without Ansible: it prints its result, or the failure's keys.
CONVERGE = """
import json, shutil, sys
from types import SimpleNamespace
from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._host.command import run_program
from ansible_collections.edgeml.fleet.plugins.module_utils._host.engine import DockerEngine
from ansible_collections.edgeml.fleet.plugins.module_utils._release.agent import perform
from ansible_collections.edgeml.fleet.plugins.modules.runtime_release import converge
options, attached = json.loads(sys.argv[1]), sys.argv[2] == "attached"
try:
    if attached:
        result = perform(options, DockerEngine(run_program), say=lambda text: print(text, file=sys.stderr, flush=True))
    else:
        module = SimpleNamespace(
            params=options,
            check_mode=False,
            get_bin_path=lambda name, **options: shutil.which(name),
            run_command=run_program,
            warn=lambda text: print(text, file=sys.stderr),
        )
        result = converge(module)
except FleetError as error:
    result = {"failed": True, **error.as_result()}
print(json.dumps(result))
"""
#: What the guard does at each look, and what the module runtime_release_info tells.
LOOK = """
import json, sys
from pathlib import Path
from ansible_collections.edgeml.fleet.plugins.module_utils._host.command import run_program
from ansible_collections.edgeml.fleet.plugins.module_utils._host.engine import DockerEngine
from ansible_collections.edgeml.fleet.plugins.module_utils._release.guard import look_after
from ansible_collections.edgeml.fleet.plugins.module_utils._release.information import runtimes
from ansible_collections.edgeml.fleet.plugins.module_utils._release.scrub import scrub
root, engine = Path(sys.argv[1]), DockerEngine(run_program)
if sys.argv[2] == "guard":
    look_after(root)
elif sys.argv[2] == "scrub":
    scrub(root)
else:
    print(json.dumps(runtimes(engine, root, 5)))
"""


CLONE_NEWNET = 0x40000000  # Linux, include/uapi/linux/sched.h


@contextlib.contextmanager
def own_network() -> Iterator[None]:
    """Let this thread, and what it starts, have a network of nothing but loopback."""
    libc = ctypes.CDLL(None, use_errno=True)
    with Path("/proc/thread-self/ns/net").open("rb") as before:
        if libc.unshare(CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "no network of its own")
        try:
            subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
            yield
        finally:
            libc.setns(before.fileno(), CLONE_NEWNET)


class Box:
    """A computer with the disk `directory`/disk.img. `engine_log` outlives its power cuts."""

    def __init__(self, directory: Path) -> None:
        self.disk = directory / "disk"
        self.root = self.disk / "edgeml"
        self.engine_log = directory / "engine.log"
        self._engine_configuration = directory / "daemon.json"
        self._first: subprocess.Popen[bytes] | None = None
        self._engine: subprocess.Popen[bytes] | None = None
        self._failing_disk = FailingDisk(directory / "disk.img", self.disk)
        self._filler = self.disk / "filler"

    def build(self) -> None:
        """Make the disk, empty, and configure the engine as the role does."""
        self._failing_disk.make(DISK_BYTES)
        self.configure_engine({})

    # -- power -----------------------------------------------------------------------------------------------------

    def power_on(self) -> None:
        """Start it; the engine starts what was to start with it."""
        if "docker0" in {name for _index, name in socket.if_nameindex()}:
            raise RuntimeError("the box would remove the bridge of this machine's engine: start it in own_network")
        self._failing_disk.mount()
        command = ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--pid", "--fork", "--kill-child"]
        command += ["--mount-proc", "sh", "-c", PROCESS_ONE, str(self.disk)]
        self._first = subprocess.Popen(command)
        _wait(lambda: self._process_one() and self.run(["test", "-e", "/run/up"]).returncode == 0)
        self.start_engine()

    def cut_power(self) -> None:
        """End everything at once. What was not on the disk is lost."""
        self.fail_disk()
        self.power_off()

    def fail_disk(self) -> None:
        """Let nothing more be read from the disk or written to it; processes go on."""
        self._failing_disk.fail()

    def power_off(self) -> None:
        """End every process; what the kernel still holds for the disk is written if the disk works."""
        if self._first is None:
            return
        process = self._process_one()
        if process:
            os.kill(process, signal.SIGKILL)
        self._first.wait()
        self._first = None
        if self._engine is not None:
            self._engine.wait()
            self._engine = None
        self._failing_disk.unmount()

    def _process_one(self) -> int:
        assert self._first is not None
        with contextlib.suppress(OSError, IndexError):  # not there yet
            return int(Path(f"/proc/{self._first.pid}/task/{self._first.pid}/children").read_text().split()[0])
        return 0

    # -- engine ----------------------------------------------------------------------------------------------------

    def configure_engine(self, more: dict[str, Any]) -> None:
        """Have the engine start with the role's configuration the next time, and with `more`."""
        role = yaml.safe_load((REPOSITORY_ROOT / "roles/docker_engine/defaults/main.yml").read_text())
        self._engine_configuration.write_text(json.dumps({**role["docker_engine_configuration"], **more}))

    def restart_engine(self, how: signal.Signals) -> None:
        """Stop the engine and start it."""
        self.stop_engine(how)
        self.start_engine()

    def start_engine(self) -> None:
        """Start the engine and wait until it answers."""
        with self.engine_log.open("ab") as log:
            self._engine = self.start(
                ["dockerd", "--config-file", str(self._engine_configuration), "--data-root", str(self.disk / "docker"),
                 "--bridge=none", "--iptables=false", "--ip6tables=false"],
                stdout=log, stderr=log,
            )  # fmt: skip
        try:
            _wait(self._engine_answers)
        except AssertionError as error:
            raise AssertionError(f"the engine does not come up: {self.say()}") from error

    def _engine_answers(self) -> bool:
        assert self._engine is not None
        assert self._engine.poll() is None, "it has ended"
        return self.run(["docker", "info"]).returncode == 0

    def stop_engine(self, how: signal.Signals) -> None:
        """Stop the engine: SIGTERM stops its containers too, SIGKILL leaves them alone."""
        assert self._engine is not None
        name = "dockerd" if how == signal.SIGTERM else "dockerd|containerd"
        self.run(["pkill", f"-{how.name.removeprefix('SIG')}", "-x", name])
        _wait(lambda: self.run(["pgrep", "-r", "D,R,S", "-x", name]).returncode != 0)
        self._engine.wait()
        self._engine = None

    # -- disk ------------------------------------------------------------------------------------------------------

    def fill_disk(self) -> None:
        """Leave no byte free."""
        with self._filler.open("wb") as file:
            block = 256 << 20
            while block >= 4096:
                try:
                    os.posix_fallocate(file.fileno(), file.tell(), block)
                    file.seek(block, os.SEEK_CUR)
                except OSError:
                    block //= 2

    def free_disk(self) -> None:
        """Give back what `fill_disk` took."""
        self._filler.unlink(missing_ok=True)

    # -- processes -------------------------------------------------------------------------------------------------

    def start(self, command: list[str], **options: Any) -> subprocess.Popen[bytes]:
        """Start a program in it."""
        return subprocess.Popen(["nsenter", "--target", str(self._process_one()), "--mount", "--pid", *command],
                                **options)  # fmt: skip

    def run(self, command: list[str]) -> subprocess.CompletedProcess[bytes]:
        """Run a program in it to its end."""
        process = self.start(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        out, error = process.communicate(timeout=PATIENCE)
        return subprocess.CompletedProcess(command, process.returncode, out, error)

    def converge(self, options: dict[str, Any], environment: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
        """Start what runtime_release does. With an `environment` it does all in its own process, which has that."""
        attached = "apart" if environment is None else "attached"
        settings = [f"{name}={value}" for name, value in (environment or {}).items()]
        command = ["env", *settings, sys.executable, "-c", CONVERGE, json.dumps(options), attached]
        return self.start(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def guard(self) -> None:
        """Let the guard look once, as its timer does."""
        done = self.run([sys.executable, "-c", LOOK, str(self.root), "guard"])
        assert done.returncode == 0, done.stderr.decode()

    def scrub(self) -> str:
        """Read all content anew, as the device's timer does; return what was said."""
        done = self.run([sys.executable, "-c", LOOK, str(self.root), "scrub"])
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode()

    def information(self) -> dict[str, Any]:
        """Return what runtime_release_info tells of the one runtime."""
        done = self.run([sys.executable, "-c", LOOK, str(self.root), "tell"])
        assert done.returncode == 0, done.stderr.decode()
        (runtime,) = json.loads(done.stdout)
        return dict(runtime)

    def containers(self) -> dict[str, str]:
        """Return the release of each of our containers that runs, by the container's name."""
        shown = self.run(["docker", "ps", "--format", '{{.Names}} {{.Label "io.edgeml.release"}}'])
        assert shown.returncode == 0, shown.stderr.decode()
        return dict(line.split() for line in shown.stdout.decode().splitlines())

    def say(self) -> str:
        """Return the last words of engine and transaction, for who has to find a fault."""
        logs = [self.engine_log, *self.root.glob("transactions/*.log")]
        return "\n".join(f"{path.name}: {path.read_text(errors='replace')[-1500:]}" for path in logs if path.exists())


def _wait(done: Any, seconds: float = PATIENCE) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, f"nothing for {seconds:.0f} s"
        time.sleep(0.02)
