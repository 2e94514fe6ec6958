# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Loading beside models that serve: a process of its own does it first (``python -m edgeml_runtime.engine.trial``).

ONNX Runtime holds the interpreter's lock while it reads and optimises a graph, so that the server
would answer nothing meanwhile; and a bad file can end the process that opens it. After the trial
the optimised graph is in the cache, checked, and the server only has to read it.
"""

import os
import pickle
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from edgeml_runtime.config import ModelConfig
from edgeml_runtime.engine.isolated_worker import end_with
from edgeml_runtime.engine.loading import describe, has_python
from edgeml_runtime.engine.served_model import ServedModel
from edgeml_runtime.errors import StartError
from edgeml_runtime.serving import EngineOptions

_REFUSED = 3


def load_beside(config: ModelConfig, engine: EngineOptions, cache_directory: Path | None) -> ServedModel:
    """The model, checked against all golden cases. Blocks, with the lock held for short. Raises StartError."""
    if has_python(*describe(config, engine)):  # not to be loaded twice: it may hold a device
        return ServedModel(config, engine, cache_directory, check=True)
    with ExitStack() as stack:
        if cache_directory is None:
            with suppress(OSError):  # nowhere to write: the server then optimises once more, and holds the lock
                cache_directory = Path(stack.enter_context(TemporaryDirectory(prefix="edgeml-graph-")))
        _try_out(config, engine, cache_directory)
        return ServedModel(config, engine, cache_directory)


def _try_out(config: ModelConfig, engine: EngineOptions, cache_directory: Path | None) -> None:
    lifeline, lifeline_end = socket.socketpair()
    with lifeline, lifeline_end:
        try:
            ended = subprocess.run(
                [sys.executable, "-P", "-m", "edgeml_runtime.engine.trial", str(lifeline_end.fileno())],
                input=pickle.dumps((config, engine, cache_directory)),
                stdout=subprocess.PIPE,
                pass_fds=(lifeline_end.fileno(),),
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                start_new_session=True,  # Ctrl-C is for the server
                check=False,
            )
        except OSError as error:
            raise StartError(f"{config.path}: a process that tries it out cannot be started: {error}") from None
    if ended.returncode == _REFUSED:
        raise StartError(ended.stdout.decode())
    if ended.returncode:
        how = signal.Signals(-ended.returncode).name if ended.returncode < 0 else f"exit code {ended.returncode}"
        raise StartError(f"{config.path}: the process that tried it out ended with {how}; is there enough memory?")


def main() -> None:
    """Load a model and check it, as standard input says; exit code 3 and the reason when it cannot be served."""
    end_with(socket.socket(fileno=int(sys.argv[1])))
    # When memory runs out, this is the process to end, not the server.
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    # From the server's own process.
    config, engine, cache_directory = pickle.load(sys.stdin.buffer)  # noqa: S301
    try:
        ServedModel(config, engine, cache_directory, check=True)
    except StartError as error:
        sys.stdout.write(str(error))
        sys.stdout.flush()
        os._exit(_REFUSED)
    os._exit(0)


if __name__ == "__main__":
    main()
