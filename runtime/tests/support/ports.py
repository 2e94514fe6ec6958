# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Ports for the servers of tests that run at the same time."""

import os
import socket
import time

# Below those that the system gives to outgoing connections.
FIRST_PORT, LAST_PORT = 21000, 23999


def free_port() -> int:
    """One port as free_ports gives them."""
    return free_ports(1)[0]


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody listens on; each of pytest-xdist's processes has ports of its own."""
    processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    process = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    mine = range(FIRST_PORT + process, LAST_PORT + 1, processes)
    # Runs that know nothing of each other begin elsewhere.
    start = os.getpid() * 37 + time.monotonic_ns() // 1000
    ports: list[int] = []
    for offset in range(len(mine)):
        port = mine[(start + offset) % len(mine)]
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        ports.append(port)
        if len(ports) == count:
            return ports
    raise RuntimeError(f"not {count} free ports from {FIRST_PORT} to {LAST_PORT}")
