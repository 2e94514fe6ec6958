# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""How many requests a server answers in a second when several clients ask at once."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._inference.client import Client
from ansible_collections.edgeml.fleet.plugins.module_utils._inference.latency import ModelObjective, prepare_request

#: Seconds that clients have to connect and to ask once, before all of them begin.
CONNECT_SECONDS = 1.0


@dataclass(frozen=True)
class Throughput:
    """Requests that were answered, and how many of them in a second."""

    requests: int
    per_second: float


def measure_throughput(
    connect: Callable[[], Client], model: ModelObjective, clients: int, seconds: float
) -> Throughput:
    """Let `clients` processes ask for `seconds`, each on a connection of its own; each asks once at least.

    Raises FleetError if one of them gets no answer.
    """
    begin = time.monotonic() + CONNECT_SECONDS
    pipes = [_ask_apart(connect, model, begin, seconds) for _client in range(clients)]
    answers: list[dict[str, Any]] = []
    for process, pipe in pipes:
        with os.fdopen(pipe) as lines:
            text = lines.read()
        os.waitpid(process, 0)
        answers.append(json.loads(text) if text else {"error": "its client was killed"})
    failed = next((answer["error"] for answer in answers if "error" in answer), "")
    if failed:
        raise FleetError(
            f"The model {model.name} {model.version} fails with {clients} clients at once",
            seen=failed,
            remedy="see the message; options.queue of the model says how many requests may wait",
        )
    rate = sum(answer["requests"] / answer["seconds"] for answer in answers)
    return Throughput(sum(answer["requests"] for answer in answers), rate)


def _ask_apart(connect: Callable[[], Client], model: ModelObjective, begin: float, seconds: float) -> tuple[int, int]:
    """Return the id of a process that asks, and the pipe through which it tells how often."""
    reading, writing = os.pipe()
    process = os.fork()
    if process:
        os.close(writing)
        return process, reading
    # The child ends here, whatever happens: what the parent has begun is not its own.
    try:
        os.close(reading)
        answer = json.dumps(_ask(connect, model, begin, seconds))
        os.write(writing, answer.encode())
    except BaseException as error:  # it has no caller
        os.write(writing, json.dumps({"error": str(error)}).encode())
    finally:
        sys.stdout = sys.stderr = None  # nothing of the parent's is written twice
        os._exit(0)
    raise AssertionError  # for readers of types


def _ask(connect: Callable[[], Client], model: ModelObjective, begin: float, seconds: float) -> dict[str, float]:
    with connect() as client:
        request = prepare_request(client, model)
        client.decode(client.send(request))
        time.sleep(max(0.0, begin - time.monotonic()))
        start = time.monotonic()
        requests = 0
        while not requests or time.monotonic() - start < seconds:
            client.send(request)
            requests += 1
        return {"requests": requests, "seconds": time.monotonic() - start}
