# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""A process that runs a user's Python code for the server: ``python -m edgeml_runtime.engine.isolated_worker``.

Arguments: the descriptors of its channel and of a socket on which nothing is ever said; when the
server goes, that one is closed, and the kernel ends this process, whatever its code does.
"""

import fcntl
import os
import resource
import signal
import socket
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

from edgeml_runtime.engine.isolated_channel import Channel, ChannelError
from edgeml_runtime.engine.python_code import Context, PythonCode
from edgeml_runtime.errors import RequestError, StartError
from edgeml_runtime.tensors import TensorSpec


def main() -> None:
    """Load the code, then compute until the channel ends."""
    channel_end, server_end = (socket.socket(fileno=int(number)) for number in sys.argv[1:])
    end_with(server_end)
    channel = Channel(channel_end)
    with suppress(ChannelError):
        _serve(channel)
    # Not an orderly end: threads of the code may still run.
    os._exit(0)


def _serve(channel: Channel) -> None:
    start, _ = channel.receive()
    _confine(start["memory_mb"])
    inputs, outputs = (_specs(start[key]) for key in ("inputs", "outputs"))
    file = Path(start["file"])
    context = Context(file.parent, start["name"], start["version"], start["parameters"])
    try:
        code = PythonCode(file, context, outputs)
    except StartError as error:
        channel.send({"error": str(error), "traceback": _traceback(error)})
        return
    channel.send({})
    while True:
        _, tensors = channel.receive(list(inputs.values()))
        try:
            results = code.infer(dict(zip(inputs, tensors, strict=True)))
        except RequestError as error:
            # Whoever has no more memory gets none back either: better to begin anew.
            ends = isinstance(error.__cause__, MemoryError)
            channel.send(
                {
                    "failure": error.failure.value,
                    "error": str(error),
                    "traceback": _traceback(error),
                    "ends": ends,
                }
            )
            if ends:
                return
        else:
            channel.send({}, list(results.values()))


def end_with(server_end: socket.socket) -> None:
    """Have the kernel send SIGIO, which ends a process, when the other side of the socket is closed."""
    signal.signal(signal.SIGIO, signal.SIG_DFL)
    fcntl.fcntl(server_end, fcntl.F_SETOWN, os.getpid())
    flags = fcntl.fcntl(server_end, fcntl.F_GETFL)
    fcntl.fcntl(server_end, fcntl.F_SETFL, flags | os.O_ASYNC | os.O_NONBLOCK)
    with suppress(BlockingIOError):
        server_end.recv(1)  # it answers only when it was closed before
        os._exit(0)


def _confine(memory_mb: int) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if memory_mb:
        # Not RLIMIT_AS: that counts reserved addresses too, of which libraries take plenty.
        resource.setrlimit(resource.RLIMIT_DATA, (memory_mb << 20, memory_mb << 20))
    with suppress(OSError):
        # When memory ends, this process is to go and not the server.
        Path("/proc/self/oom_score_adj").write_text("1000")


def _specs(documents: list[dict[str, Any]]) -> dict[str, TensorSpec]:
    return {
        document["name"]: TensorSpec(document["name"], document["datatype"], tuple(document["shape"]), document["raw"])
        for document in documents
    }


def _traceback(error: BaseException) -> str:
    return "".join(traceback.format_exception(error.__cause__))[-16_000:] if error.__cause__ else ""


if __name__ == "__main__":
    main()
