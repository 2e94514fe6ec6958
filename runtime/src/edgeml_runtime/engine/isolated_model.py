# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""A model of Python code in processes of its own: what they do to themselves never reaches the server."""

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from edgeml_runtime.engine.isolated_channel import Channel, ChannelClosed, ChannelError
from edgeml_runtime.engine.model import Cancellation
from edgeml_runtime.engine.python_code import Context
from edgeml_runtime.errors import Failure, RequestError, StartError
from edgeml_runtime.serving import ServingOptions
from edgeml_runtime.tensors import Array, TensorSpec

_STANDARD_ERROR = 2

LOAD_SECONDS = 300.0
FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 30.0

logger = logging.getLogger(__name__)


class IsolatedModel:
    """As many processes as runs at the same time; one that ends or hangs is replaced.

    A run may take ``deadline_seconds``, then its process is killed. A client that goes away earlier
    does not have it killed: else clients with little patience could keep a model from ever working.
    """

    blocking = True
    provider = ""

    def __init__(
        self,
        file: Path,
        context: Context,
        inputs: Mapping[str, TensorSpec],
        outputs: Mapping[str, TensorSpec],
        options: ServingOptions,
    ) -> None:
        """Start the processes and load the code in each. Raises StartError."""
        self.inputs = inputs
        self.outputs = outputs
        self._file = file
        self._deadline_seconds = options.deadline_seconds
        self._threads = options.engine.threads
        self._start = {
            "file": str(file),
            "name": context.name,
            "version": context.version,
            "parameters": context.parameters,
            "memory_mb": options.memory_mb,
            "inputs": [asdict(spec) for spec in inputs.values()],
            "outputs": [asdict(spec) for spec in outputs.values()],
        }
        #: Guards all that follows, and tells of changes to it.
        self._changed = threading.Condition()
        self._idle: list[_Worker] = []
        self._count = options.engine.parallel
        self._broken = 0
        self._pausing = False
        self._failures = 0
        self._last_end = ""
        self._closed = False
        workers: list[_Worker] = []
        try:
            for _ in range(self._count):
                workers.append(_Worker(self._threads))
            for worker in workers:
                worker.load(self._start)
        except BaseException:
            for worker in workers:
                worker.end()
            raise
        self._idle = workers
        threading.Thread(target=self._keep, name=f"keep {context.name}", daemon=True).start()

    def run(
        self, inputs: Mapping[str, Array], outputs: Sequence[str], cancellation: Cancellation | None = None
    ) -> list[Array]:
        """Compute the named outputs; see Model.run. Unavailable while its processes cannot be kept alive."""
        worker = self._take(cancellation)
        deadline = time.monotonic() + self._deadline_seconds
        try:
            header, tensors = worker.ask([inputs[name] for name in self.inputs], list(self.outputs.values()), deadline)
            failed = header.get("failure")
            if failed is None and len(tensors) != len(self.outputs):
                raise ChannelError("sent no tensors")
        except ChannelError as error:
            late = time.monotonic() >= deadline
            seen = worker.end(error)
            logger.error("%s: its process %s", self._file, seen)
            self._replace(seen)
            if late:
                message = f"the model's code gave no answer within {self._deadline_seconds:g} s"
                raise RequestError(Failure.DEADLINE, message) from None
            raise RequestError(Failure.INTERNAL, f"the process of the model's code {seen}") from None
        except BaseException:
            worker.end()
            self._replace("was given up")
            raise
        if header.get("ends"):
            worker.end()
            self._replace("had no more memory")
        else:
            with self._changed:
                self._failures = 0
                self._idle.append(worker)
                self._changed.notify()
        if failed is None:
            by_name = dict(zip(self.outputs, tensors, strict=True))
            return [by_name[name] for name in outputs]
        failure = Failure.INVALID if failed == Failure.INVALID.value else Failure.INTERNAL
        message = str(header.get("error"))
        level = logging.ERROR if failure is Failure.INTERNAL else logging.DEBUG
        logger.log(level, "%s: %s\n%s", self._file, message, str(header.get("traceback"))[-16_000:])
        raise RequestError(failure, message)

    def close(self) -> None:
        """End the processes."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            for worker in self._idle:
                worker.end()

    # -- private ---------------------------------------------------------------------------------------------------

    def _take(self, cancellation: Cancellation | None) -> "_Worker":
        if cancellation is not None:
            cancellation.bind(self._wake)
        with self._changed:
            while True:
                if self._closed or (cancellation is not None and cancellation.cancelled):
                    raise RequestError(Failure.UNAVAILABLE, "the request was ended before its run began")
                while self._idle:
                    worker = self._idle.pop()
                    if worker.lives():
                        return worker
                    self._replace(worker.end())
                if self._pausing and self._broken == self._count:
                    raise RequestError(
                        Failure.UNAVAILABLE,
                        f"the process of the model's code {self._last_end}, failure {self._failures} in a row; "
                        "it is started again soon",
                    )
                self._changed.wait()

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _replace(self, seen: str) -> None:
        """Have a process started in the place of one that was ended."""
        with self._changed:
            self._failures += 1
            self._last_end = seen
            self._broken += 1
            self._changed.notify_all()

    def _keep(self) -> None:
        """On a thread of its own: start processes in the place of broken ones."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._broken or self._closed)
                if self._closed:
                    for worker in self._idle:
                        worker.end()
                    return
            if self._paused() and (fresh := self._start_again()) is not None:
                with self._changed:
                    self._broken -= 1
                    self._idle.append(fresh)
                    self._changed.notify_all()

    def _start_again(self) -> "_Worker | None":
        fresh = None
        try:
            fresh = _Worker(self._threads)
            fresh.load(self._start)
            return fresh
        except StartError as error:
            logger.error("%s: its process was not started again: %s", self._file, error)
            if fresh is not None:
                fresh.end()
        with self._changed:
            self._failures += 1
            self._last_end = "cannot be started again"
        return None

    def _paused(self) -> bool:
        """Wait the longer the more failures there were on end; false when the model was closed."""
        with self._changed:
            if self._failures > 1:
                pause = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2 ** min(self._failures - 2, 30))
                self._pausing = True
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._closed, pause)
                self._pausing = False
            return not self._closed


class _Worker:
    """One process. It holds none of the server's descriptors but its ends of two sockets, and standard error."""

    def __init__(self, threads: int) -> None:
        """Start it. Raises StartError."""
        channel, channel_end = socket.socketpair()
        self._lifeline, lifeline_end = socket.socketpair()
        self._channel = Channel(channel)
        with channel_end, lifeline_end:
            descriptors = (channel_end.fileno(), lifeline_end.fileno())
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-m", "edgeml_runtime.engine.isolated_worker", *map(str, descriptors)],
                    stdin=subprocess.DEVNULL,
                    stdout=_STANDARD_ERROR,
                    pass_fds=descriptors,
                    env={
                        **os.environ,
                        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
                        # Libraries beneath numpy would start a thread for each processor.
                        "OMP_NUM_THREADS": str(threads),
                        "OPENBLAS_NUM_THREADS": str(threads),
                    },
                    # Ctrl-C is for the server, which still has requests to finish.
                    start_new_session=True,
                )
            except OSError as error:
                raise StartError(f"a process for isolated code cannot be started: {error}") from None

    def load(self, start: Mapping[str, object]) -> None:
        """Have it load its code. Raises StartError."""
        deadline = time.monotonic() + LOAD_SECONDS
        try:
            self._channel.send(start, deadline=deadline)
            header, _ = self._channel.receive(deadline=deadline)
        except ChannelError as error:
            raise StartError(f"{start['file']}: its process {self.end(error)} while it loaded") from None
        if "error" in header:
            if header.get("traceback"):
                logger.error("%s cannot be loaded\n%s", start["file"], header["traceback"])
            raise StartError(str(header["error"]))

    def ask(
        self, inputs: Sequence[Array], outputs: Sequence[TensorSpec], deadline: float
    ) -> tuple[dict[str, object], list[Array]]:
        """One run. Raises ChannelError."""
        self._channel.send({}, inputs, deadline)
        return self._channel.receive(outputs, deadline)

    def lives(self) -> bool:
        """Whether the process still runs."""
        return self._exit() is None

    def end(self, error: ChannelError | None = None) -> str:
        """Kill the process and all that it started. Says how it ended by itself, or else what the error says."""
        if self._process.returncode is not None:  # its id may be another's by now
            return str(error or "was ended")
        ended = self._exit()
        if isinstance(error, ChannelClosed):
            # The channel closes a moment before the process has ended.
            for _ in range(200):
                ended = ended or self._exit()
                if ended:
                    break
                time.sleep(0.001)
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._channel.close()
        self._lifeline.close()
        if ended is None:
            return str(error or "was ended")
        if ended.si_code == os.CLD_EXITED:
            return f"ended with code {ended.si_status}"
        return f"was ended by {signal.Signals(ended.si_status).name}"

    def _exit(self) -> os.waitid_result | None:
        """How the process ended, without forgetting its id, which names its group."""
        try:
            return os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:  # ended here before
            return None
