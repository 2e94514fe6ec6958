# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Connections without sockets: bytes are handed to them in pieces, what they write is remembered."""

import asyncio
import logging
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, cast

from edgeml_runtime.config import Config
from edgeml_runtime.config_file import read_config
from edgeml_runtime.errors import Failure, RequestError
from edgeml_runtime.inference import InferenceRequest
from edgeml_runtime.tensors import Array
from signatures import MODELS, Broken, Model, echo
from virtual_time import VirtualTimeLoop

LIMITS = {"body_bytes": 65536, "header_bytes": 4096, "receive_seconds": 5, "idle_seconds": 5}
#: Of the loop's own time, in which nothing takes time but waiting.
PATIENCE_SECONDS = 5
# Of the event loop: what was read is parsed in portions of 4 KiB, one in a turn or two.
_MOST_TURNS = 1000
# So short that no timer comes, but the loop has nothing else left to do.
_INSTANT = 1e-6
# Longer than any timer of a connection that is closed; else they would gather, a million in an hour.
_AFTERWARDS_SECONDS = 120


def config() -> Config:
    """A configuration with small limits; its listener and model are never used."""
    document = {
        "listen": {"rest": ["127.0.0.1:8000"]},
        "models": [{"name": "none", "version": "1.0.0", "path": "/"}],
        "limits": LIMITS,
    }
    return read_config(document, "fuzz")


class Transport(asyncio.Transport):
    """The server's end of a connection; what is written is remembered, and closing is told to the protocol."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._loop = loop
        self.protocol: asyncio.BaseProtocol | None = None
        self.written = bytearray()
        self.closing = self.paused = False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return SimpleNamespace(family=socket.AF_UNIX) if name == "socket" else default

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = protocol

    def receive(self, data: bytes) -> bytes:
        """Hand bytes to the protocol as the event loop does; gives what it has no room for yet."""
        if not isinstance(self.protocol, asyncio.BufferedProtocol):
            cast(asyncio.Protocol, self.protocol).data_received(data)
            return b""
        room = memoryview(self.protocol.get_buffer(-1))
        size = min(len(room), len(data))
        room[:size] = data[:size]
        del room
        self.protocol.buffer_updated(size)
        return data[size:]

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if not self.closing:
            self.written += data

    def writelines(self, parts: Any) -> None:
        for part in parts:
            self.write(part)

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return self.closing

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False

    def close(self) -> None:
        if not self.closing:
            self.closing = True
            self._loop.call_soon(self._lost)

    abort = close

    def _lost(self) -> None:
        if self.protocol is not None:
            protocol, self.protocol = self.protocol, None
            protocol.connection_lost(None)


class _Served:
    """A model that answers with what it was asked, at once or a little later."""

    def __init__(self, model: Model, is_slow: bool) -> None:
        self.name, self.version, self.digest = model.name, model.version, model.digest
        self.platform, self.provider = model.platform, model.provider
        self.inputs, self.outputs = model.inputs, model.outputs
        self.metrics = SimpleNamespace(total=lambda _seconds: None)
        self._is_slow = is_slow

    async def infer(self, request: InferenceRequest) -> list[Array]:
        if self._is_slow:
            await asyncio.sleep(0)
        return echo(request)


class FakeEngine:
    """What transports ask of an engine."""

    ready = True

    def __init__(self) -> None:
        self._models = {model.name: _Served(model, is_slow=bool(index % 2)) for index, model in enumerate(MODELS)}

    def model(self, name: str, version: str, _protocol: str | None = None) -> _Served:
        if name not in self._models or version not in ("", "1.0.0"):
            raise RequestError(Failure.NOT_FOUND, f"model '{name}' is not served here")
        return self._models[name]

    def is_loaded(self, name: str, version: str, _protocol: str | None = None) -> bool:
        return bool(self.model(name, version))

    def versions(self, name: str, _protocol: str | None = None) -> list[str]:
        return [self.model(name, "").version]


class _Strict(logging.Handler):
    """An error in the log is a finding."""

    def emit(self, record: logging.LogRecord) -> None:
        raise Broken(f"the server logged: {record.getMessage()}") from (record.exc_info or (None, None))[1]


@contextmanager
def _strict_log() -> Iterator[None]:
    """Only meanwhile: whoever else uses the server in this process may well make it log errors."""
    logger = logging.getLogger("edgeml_runtime")
    before = logger.propagate, logger.handlers
    logger.propagate, logger.handlers = False, [_Strict(logging.ERROR)]
    try:
        yield
    finally:
        logger.propagate, logger.handlers = before


class Wire:
    """Talks to connections of one kind, which ``make`` makes."""

    def __init__(self, transport: type[Transport] = Transport) -> None:
        self._transport = transport
        self.loop = VirtualTimeLoop()
        self._failed: list[dict[str, Any]] = []
        self.loop.set_exception_handler(lambda _loop, context: self._failed.append(context))

    def converse(
        self, make: Callable[[], asyncio.Protocol], parts: list[bytes], ends: bool, patient: bool = False
    ) -> bytes:
        """All that a connection writes to a client that sends these parts, then ends its side or breaks off.

        ``patient``: not before all is answered that can be. However long it takes, the outcome is the same.
        """
        with _strict_log():
            written = self.loop.run_until_complete(self._converse(make, parts, ends, patient))
            self.loop.run_until_complete(asyncio.sleep(_AFTERWARDS_SECONDS))
        if self._failed:
            context, self._failed = self._failed[0], []
            raise Broken(context["message"]) from context.get("exception")
        return written

    async def _converse(
        self, make: Callable[[], asyncio.Protocol], parts: list[bytes], ends: bool, patient: bool
    ) -> bytes:
        transport = self._transport(self.loop)
        connection = transport.protocol = make()
        connection.connection_made(transport)
        for part in parts:
            left = part
            while left:
                await self._until_read(transport)
                if transport.closing:
                    break
                left = transport.receive(left)
                await asyncio.sleep(0)
        await self._until_read(transport)
        if patient:
            await asyncio.sleep(_INSTANT)
        if ends and not transport.closing:
            protocol = cast(asyncio.Protocol | asyncio.BufferedProtocol, transport.protocol)
            if not protocol.eof_received():
                transport.close()
        for _ in range(20):
            await asyncio.sleep(0)
        transport.close()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        if tasks:
            _, pending = await asyncio.wait(tasks, timeout=PATIENCE_SECONDS)
            if pending:
                raise Broken(f"{pending} outlives its connection")
        return bytes(transport.written)

    async def _until_read(self, transport: Transport) -> None:
        turns = 0
        while transport.paused and not transport.closing:
            turns += 1
            if turns > 2 * _MOST_TURNS:
                raise Broken("the server stopped reading for ever")
            # In the end it may wait for time.
            await asyncio.sleep(0 if turns < _MOST_TURNS else PATIENCE_SECONDS / _MOST_TURNS)
