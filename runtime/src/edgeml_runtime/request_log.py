# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""One JSON object a line on standard output for every inference request, for ``log_requests``."""

import os
from datetime import UTC, datetime

import orjson

_STDOUT = 1


def log_request(
    protocol: str,
    model: str,
    version: str,
    status: str,
    request_id: str,
    client: str,
    total: float,
    queue: float | None = None,
    compute: float | None = None,
) -> None:
    """Write the line: one system call, so that lines of several processes do not mix.

    ``protocol``: rest, grpc or mqtt. ``status``: the protocol's own, as in the metrics. ``model`` is
    empty when the request named none that is served. ``client``: address, "unix" or a topic. Times in
    seconds, None where unknown; the line has milliseconds.
    """
    line = {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "protocol": protocol,
        "model": model,
        "version": version,
        "status": status,
        "queue_ms": _milliseconds(queue),
        "compute_ms": _milliseconds(compute),
        "total_ms": _milliseconds(total),
        "id": request_id,
        "client": client,
    }
    os.write(_STDOUT, orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 3)
