# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""The life of a server process: load, be a candidate or active, drain, end.

A *candidate* listens on its unix sockets only. Once *active*, it also listens on TCP, and takes
over from a process that does so already: both share the ports (SO_REUSEPORT). While *draining*, it
accepts nothing new, asks clients to go elsewhere, and finishes what is under way.
"""

import asyncio
import gc
import logging
import resource
import signal
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from time import perf_counter

from edgeml_runtime import memory
from edgeml_runtime.config import Address, Config
from edgeml_runtime.engine.engine import Engine, ModelStatus
from edgeml_runtime.engine.sampling import Sampling
from edgeml_runtime.errors import ConfigurationError, Failure, RequestError, StartError
from edgeml_runtime.metrics import Metrics
from edgeml_runtime.transports.credentials import Access, TlsMaterial
from edgeml_runtime.transports.http import listen as http
from edgeml_runtime.transports.http.admin import AdminApplication
from edgeml_runtime.transports.http.prometheus import MetricsApplication
from edgeml_runtime.transports.http.rest import RestApplication
from edgeml_runtime.transports.listener import Claim, Listener
from edgeml_runtime.transports.unsent import Unsent

STARTING = "starting"
CANDIDATE = "candidate"
ACTIVE = "active"
DRAINING = "draining"

# How often the certificate files are looked at.
TLS_WATCH_SECONDS = 10.0

# Linux moves connections that wait in a closing listener's queue to its successor only with this.
_MIGRATE_REQUESTS = Path("/proc/sys/net/ipv4/tcp_migrate_req")

logger = logging.getLogger(__name__)


async def serve(
    config: Config,
    read_config: Callable[[], Config],
    as_candidate: bool = False,
    on_ready: Callable[[Engine], None] | None = None,
    claim: Claim = Claim.NEW,
) -> None:
    """Serve until SIGTERM or SIGINT; SIGUSR1 activates a candidate, SIGHUP reloads. Raises StartError.

    ``read_config`` reads the configuration again. ``on_ready`` is called once all models are loaded. ``claim`` is
    how one that is no candidate comes to its ports.
    Threads of the engine may still be running on return: the caller ends the process.
    """
    await Server(config, read_config, as_candidate, claim).run(on_ready)


class Server:
    """One server process."""

    def __init__(self, config: Config, read_config: Callable[[], Config], as_candidate: bool, claim: Claim) -> None:
        self._config = config
        self._read_config = read_config
        self._as_candidate = as_candidate
        self._claim = claim
        self._metrics = Metrics()
        self.engine = Engine(config, self._metrics, lambda: read_config().models)
        self.sampling = Sampling(self.engine)
        self._access = Access(config.grants)
        self._unsent = Unsent(config.limits.unsent_bytes)
        self._metrics.observe_unsent(lambda: self._unsent.bytes, lambda: self._unsent.refused)
        self._tls: TlsMaterial | None = None
        self._private: list[Listener] = []
        self._public: list[Listener] = []
        self._changing = asyncio.Lock()
        self._stop = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self.state = STARTING

    async def run(self, on_ready: Callable[[Engine], None] | None = None) -> None:
        """Live from start to end. Raises StartError."""
        started = perf_counter()
        # Connections are bounded by limits.connections; the usual soft limit of 1024 files would come first.
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        loop.add_signal_handler(signal.SIGUSR1, self._in_background, self.activate)
        loop.add_signal_handler(signal.SIGHUP, self._in_background, self.reload)
        self._tls = TlsMaterial(self._config.tls) if self._config.tls else None
        if self._tls:
            self._in_background(self._watch_tls)
        try:
            # Listeners first: live answers, and ready says no, however long a model takes to load.
            await self._open(self._private, lambda address: bool(address.path), Claim.NEW)
            if not self._as_candidate:
                await self._open_public(self._claim)
            loading = asyncio.create_task(self.engine.start())
            stopping = asyncio.create_task(self._stop.wait())
            await asyncio.wait((loading, stopping), return_when=asyncio.FIRST_COMPLETED)
            if not self._stop.is_set():
                loading.result()
                if not self._as_candidate:
                    self._open_broker()
                # What is there now stays: no later collection walks through it, which would hold all requests up.
                gc.collect()
                gc.freeze()
                memory.trim()
                self.engine.ready = True
                self.state = CANDIDATE if self._as_candidate else ACTIVE
                logger.info("ready as %s after %.3f s", self.state, perf_counter() - started)
                if on_ready is not None:
                    on_ready(self.engine)
                await stopping
            else:
                loading.cancel()
        finally:
            await self._drain()
        logger.info("stopped")

    async def activate(self) -> None:
        """Open the public listeners; nothing to do when they are. Raises RequestError (unavailable, invalid)."""
        async with self._changing:
            if self.state == ACTIVE:
                return
            if self.state != CANDIDATE:
                raise RequestError(
                    Failure.UNAVAILABLE, f"the server is {self.state}; only a candidate can be activated"
                )
            if _MIGRATE_REQUESTS.exists() and _MIGRATE_REQUESTS.read_text().strip() == "0":
                logger.warning(
                    "net.ipv4.tcp_migrate_req is 0: connections that wait at a stopping predecessor are reset"
                )
            try:
                await self._open_public(Claim.OVER)
                self._open_broker()
            except StartError as error:
                await asyncio.gather(*(listener.stop() for listener in self._public))
                self._public.clear()
                raise RequestError(Failure.INVALID, str(error)) from None
            self.state = ACTIVE
            logger.info("active")

    def models(self) -> list[ModelStatus]:
        """What the admin socket tells of the models."""
        return self.engine.index()

    def drain(self) -> None:
        """Begin to drain; the process ends when that is done."""
        self._stop.set()

    async def reload(self) -> None:
        """Read the configuration again: models, access and certificates change, listeners stay.

        Raises RequestError (invalid) that says what could not be taken over; what served goes on.
        """
        async with self._changing:
            try:
                config = self._read_config()
            except ConfigurationError as error:
                raise RequestError(Failure.INVALID, f"the configuration cannot be read: {error}") from None
            self._access.replace(config.grants)
            self._refresh_tls()
            await self.engine.reload()
            logger.info("reloaded")

    # -- private ---------------------------------------------------------------------------------------------------

    async def _open_public(self, claim: Claim) -> None:
        await self._open(self._public, lambda address: not address.path, claim)

    def _open_broker(self) -> None:
        """Only once all models are loaded: the broker may hold requests for them. Raises StartError."""
        if self._config.mqtt:
            from edgeml_runtime.transports.mqtt import service as mqtt  # its library costs start-up time and memory

            self._public.append(mqtt.connect(self.engine, self._metrics, self._config, self._config.mqtt))

    async def _open(self, opened: list[Listener], chosen: Callable[[Address], bool], claim: Claim) -> None:
        """Open the chosen listeners. Raises StartError; what is open by then is in ``opened``."""
        config = self._config
        for address in filter(chosen, config.rest):
            rest = RestApplication(self.engine, self._metrics, self._access_of(address), config)
            opened.append(await http.listen(rest, address, self._tls, config, claim, self._unsent))
        for address in filter(chosen, config.metrics):
            prometheus = MetricsApplication(self._metrics, self._access_of(address))
            opened.append(await http.listen(prometheus, address, self._tls, config, claim, self._unsent))
        for address in filter(chosen, config.admin):
            opened.append(await http.listen(AdminApplication(self), address, None, config, claim, self._unsent))
        addresses = list(filter(chosen, config.grpc))
        if addresses:
            from edgeml_runtime.transports.grpc import listen as grpc  # its library costs start-up time and memory

            for address in addresses:
                access = self._access_of(address)
                listening = (self.engine, self._metrics, address, self._tls, access, config, claim, self._unsent)
                opened.append(await grpc.listen(*listening))
        if opened:
            logger.info("listening: %s", ", ".join(listener.name for listener in opened))

    def _access_of(self, address: Address) -> Access | None:
        """What a listener asks of clients: nothing on a unix socket, which its permissions protect."""
        return None if address.path else self._access

    async def _drain(self) -> None:
        self.state = DRAINING
        self.engine.ready = False
        logger.info("draining")
        await asyncio.gather(*(listener.stop() for listener in (*self._public, *self._private)))

    def _refresh_tls(self) -> None:
        try:
            if self._tls and self._tls.refresh():
                logger.info("new connections get the new TLS certificate")
        except StartError as error:
            raise RequestError(Failure.INVALID, f"the TLS files cannot be used, the old ones go on: {error}") from None

    async def _watch_tls(self) -> None:
        """Certificates are renewed by others, who need not know of this process."""
        while True:
            await asyncio.sleep(TLS_WATCH_SECONDS)
            try:
                self._refresh_tls()
            except RequestError as error:
                logger.error("%s", error)

    def _in_background(self, action: Callable[[], Awaitable[None]]) -> None:
        async def run() -> None:
            with suppress(asyncio.CancelledError):
                try:
                    await action()
                except RequestError as error:
                    logger.error("%s", error)

        task = asyncio.get_running_loop().create_task(run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
