# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""The real listeners on loopback in the test's own process, where a test can count what they leave behind."""

import asyncio
import gc
import logging
import re
import sys
import threading
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import uvloop
from edgeml_runtime.config import Config
from edgeml_runtime.config_file import read_config
from edgeml_runtime.engine.engine import Engine
from edgeml_runtime.metrics import Metrics
from edgeml_runtime.transports.grpc import listen as grpc
from edgeml_runtime.transports.http import listen as http
from edgeml_runtime.transports.http.rest import RestApplication
from edgeml_runtime.transports.listener import Listener
from edgeml_runtime.transports.unsent import Unsent
from ports import free_ports

SECONDS = 60
#: Of a request that is over, nothing of these may be left.
_OF_A_REQUEST = ("coroutine", "generator", "traceback", "frame", "Task", "Future", "_asyncio.Task", "_asyncio.Future")


@dataclass
class InProcess:
    """A server on a thread of this process."""

    config: Config
    rest_port: int
    grpc_port: int
    metrics: Metrics = field(default_factory=Metrics)
    engine: Engine = None  # type: ignore[assignment]
    listeners: list[Listener] = field(default_factory=list)
    unsent: Unsent = field(default_factory=lambda: Unsent(0))
    loop: asyncio.AbstractEventLoop = field(default_factory=uvloop.new_event_loop)

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run something on the server's event loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(SECONDS)

    async def open(self) -> None:
        """Load the models, then listen."""
        self.engine = Engine(self.config, self.metrics)
        await self.engine.start()
        self.engine.ready = True
        self.metrics.observe_unsent(lambda: self.unsent.bytes, lambda: self.unsent.refused)
        self.unsent.most = self.config.limits.unsent_bytes
        rest = RestApplication(self.engine, self.metrics, None, self.config)
        (address,), (grpc_address,) = self.config.rest, self.config.grpc
        self.listeners.append(await http.listen(rest, address, None, self.config, False, self.unsent))
        self.listeners.append(
            await grpc.listen(self.engine, self.metrics, grpc_address, None, None, self.config, False, self.unsent)
        )

    async def close(self) -> None:
        """Stop listening, give the models back."""
        for listener in self.listeners:
            await listener.stop()
        for name in {status.name for status in self.engine.index()}:
            await self.engine.unload(name)
        await asyncio.gather(*self.engine._tasks)


@contextmanager
def serving(*models: dict[str, Any], **settings: Any) -> Iterator[InProcess]:
    """A server with these models; ``settings`` add to its configuration."""
    rest_port, grpc_port = free_ports(2)
    listen = {"rest": [f"127.0.0.1:{rest_port}"], "grpc": [f"127.0.0.1:{grpc_port}"]}
    document = {"listen": listen, "models": list(models), "drain_seconds": 0, **settings}
    server = InProcess(read_config(document, "test.json"), rest_port, grpc_port)
    logging.disable()  # pytest would keep the log's records, and with them the errors
    thread = threading.Thread(target=server.loop.run_forever, daemon=True)
    thread.start()
    try:
        server.run(server.open())
        yield server
    finally:
        server.run(server.close())
        server.loop.call_soon_threadsafe(server.loop.stop)
        thread.join(SECONDS)
        logging.disable(logging.NOTSET)


@contextmanager
def no_collector() -> Iterator[None]:
    """Without Python's cycle collector: what then goes away, goes away at once."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.collect()


def census() -> Counter[str]:
    """How many objects there are of the kinds that belong to a request."""
    kinds = Counter(type(each) for each in gc.get_objects())
    found: Counter[str] = Counter()
    for kind, count in kinds.items():
        if str(kind.__module__).startswith("edgeml_runtime") or kind.__name__ in _OF_A_REQUEST:
            found[kind.__name__] += count
    return found


def cyclic_garbage() -> Counter[str]:
    """What only the cycle collector can find, by kind; it is freed."""
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        gc.collect()
        return Counter(type(each).__name__ for each in gc.garbage)
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.collect()


def settled(condition: Callable[[], bool]) -> bool:
    """Whether a condition comes to hold; threads and the event loop may have to end something first."""
    deadline = monotonic() + 240
    while not condition():
        if monotonic() > deadline:
            return False
        sleep(0.02)
    return True


def resident_bytes() -> int:
    """Resident memory of this process."""
    assert sys.platform == "linux"
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def peak_bytes() -> int:
    """The most resident memory since it was last forgotten, see hostile.forget_peak."""
    found = re.search(r"^VmHWM:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024
