# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Server processes: started in a session of their own, watched and ended with all their children, by process id."""

import contextlib
import os
import socket
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import psutil

STOP_SECONDS = 10


class ProcessTree:
    """A process that was started here, and its descendants."""

    def __init__(self, command: Sequence[str], log: Path, environment: Mapping[str, str], directory: Path) -> None:
        self.log = log
        self._ending: list[psutil.Process] = []
        with log.open("wb") as output:
            self._root = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=dict(environment),
                cwd=directory,
                start_new_session=True,  # Ctrl-C reaches the benchmark alone, which then ends what it started
            )

    def exit_code(self) -> int | None:
        """None while the first process runs."""
        return self._root.poll()

    def cpu_seconds(self) -> float:
        """User and system time of the tree so far, in seconds."""
        return sum(self._each(lambda process: sum(process.cpu_times()[:2])))

    def pss_bytes(self) -> int:
        """Resident memory of the tree in bytes; pages shared by several processes count once (PSS)."""
        return round(sum(self._each(lambda process: process.memory_full_info().pss)))

    def pin(self, cores: Sequence[int]) -> None:
        """Keep every thread of the tree on these cores."""
        for process in self._processes():
            with contextlib.suppress(OSError):  # ended meanwhile
                for thread in Path(f"/proc/{process.pid}/task").iterdir():
                    with contextlib.suppress(OSError):
                        os.sched_setaffinity(int(thread.name), cores)

    def ask_to_end(self) -> None:
        """Ask the first process to stop, and remember what else there is of the tree."""
        self._ending = self._processes()
        self._root.terminate()

    def make_end(self) -> None:
        """Give what was asked to end some time, then kill what still runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._root.wait(STOP_SECONDS)
        for process in self._ending:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()  # psutil compares start times: a process id that was given anew is safe
        psutil.wait_procs(self._ending, timeout=STOP_SECONDS)
        self._root.wait(STOP_SECONDS)

    def _processes(self) -> list[psutil.Process]:
        try:
            root = psutil.Process(self._root.pid)
            return [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def _each(self, measure: Callable[[psutil.Process], float]) -> Iterator[float]:
        for process in self._processes():
            with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess, psutil.AccessDenied):
                yield measure(process)


def end_all(trees: Sequence[ProcessTree]) -> None:
    """End process trees with everything that belongs to them, all at the same time."""
    for tree in trees:
        tree.ask_to_end()
    for tree in trees:
        tree.make_end()


@contextlib.contextmanager
def free_ports(count: int) -> Iterator[list[int]]:
    """Ports of loopback that nobody listens on, held until the block ends."""
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        yield [one.getsockname()[1] for one in sockets]
