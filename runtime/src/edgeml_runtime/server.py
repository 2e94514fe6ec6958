# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""The life of a server process: listen, load, be ready, stop."""

import asyncio
import logging
import signal
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter

from edgeml_runtime.config import Address, Config
from edgeml_runtime.engine.engine import Engine
from edgeml_runtime.metrics import Metrics
from edgeml_runtime.transports import http
from edgeml_runtime.transports.credentials import load_tls
from edgeml_runtime.transports.listener import Listener
from edgeml_runtime.transports.prometheus import MetricsApplication
from edgeml_runtime.transports.rest import RestApplication

# How long requests in flight may take to finish after a signal to stop.
STOP_SECONDS = 10

logger = logging.getLogger(__name__)


async def serve(config: Config) -> None:
    """Serve until SIGTERM or SIGINT. Raises StartError.

    Threads of the engine may still be running on return: the caller ends the process.
    """
    started = perf_counter()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)

    metrics = Metrics()
    engine = Engine(config, metrics)
    listeners: list[Listener] = []
    try:
        # Listeners first: live answers, and ready says no, however long a model takes to load.
        await _open_listeners(config, engine, metrics, listeners)
        loading = loop.run_in_executor(ThreadPoolExecutor(1, thread_name_prefix="load"), engine.load)
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait((loading, stopping), return_when=asyncio.FIRST_COMPLETED)
        if not stop.is_set():
            loading.result()
            engine.ready = True
            logger.info("ready after %.3f s", perf_counter() - started)
            await stopping
        logger.info("stopping")
    finally:
        engine.ready = False
        await asyncio.gather(*(listener.stop() for listener in listeners))
    logger.info("stopped")


async def _open_listeners(config: Config, engine: Engine, metrics: Metrics, listeners: list[Listener]) -> None:
    tls = load_tls(config.tls) if config.tls else None
    for address in config.rest:
        rest = RestApplication(engine, metrics, _token(config, address), config.max_request_bytes)
        listeners.append(await http.listen(rest, address, tls, STOP_SECONDS))
    for address in config.metrics:
        prometheus = MetricsApplication(metrics, _token(config, address))
        listeners.append(await http.listen(prometheus, address, tls, STOP_SECONDS))
    if config.grpc:
        from edgeml_runtime.transports import grpc  # its library costs start-up time and memory

        for address in config.grpc:
            token = _token(config, address)
            listeners.append(
                await grpc.listen(engine, metrics, address, tls, token, config.max_request_bytes, STOP_SECONDS)
            )
    logger.info("listening on %s", ", ".join(listener.address.text for listener in listeners))


def _token(config: Config, address: Address) -> str | None:
    """The token that a listener requires: none on a unix socket, which its permissions protect."""
    return None if address.path else config.bearer_token
