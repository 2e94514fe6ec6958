# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""The load client h2load: its command line, its log and its summary.

h2load's log has one line per request: start in microseconds since the epoch, HTTP status, duration in microseconds,
separated by tabs.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from serving_bench.encodings import Request

WARM_UP_SECONDS = 0.2

_FINISHED = re.compile(r"^finished in .*, ([\d.]+) req/s", re.MULTILINE)
_REQUESTS = re.compile(
    r"^requests: (\d+) total, (\d+) started, (\d+) done, (\d+) succeeded, (\d+) failed, (\d+) errored, (\d+) timeout",
    re.MULTILINE,
)
_TRAFFIC = re.compile(r"^traffic: .*\((\d+)\) total, .*\((\d+)\) headers.*, .*\((\d+)\) data", re.MULTILINE)


@dataclass(frozen=True)
class Load:
    """What one run of h2load saw. Latencies in microseconds; throughput in requests per second."""

    requests: int
    failed: int
    p50_us: float
    p95_us: float
    p99_us: float
    per_second: float
    answer_bytes: float
    """Content per answer; a server that begins to fail under load answers less."""


def command(
    url: str, request: Request, body: Path, log: Path, *, grpc: bool, clients: int, seconds: float, core: int | None
) -> list[str]:
    """The command line for a run of ``seconds`` after a short warm-up. ``core`` pins the client."""
    return [
        *(["taskset", "--cpu-list", str(core)] if core is not None else []),
        "h2load",
        *([] if grpc else ["--h1"]),
        f"--clients={clients}",
        f"--warm-up-time={round(WARM_UP_SECONDS * 1000)}ms",
        f"--duration={round(seconds * 1000)}ms",
        f"--connection-active-timeout={round(seconds + 30)}",
        f"--log-file={log}",
        f"--data={body}",
        *(f"--header={name}: {value}" for name, value in request.headers),
        f"{url}{request.path}",
    ]


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The nearest-rank percentile of ascending values: the least value that ``percent`` of them do not exceed."""
    if not ordered:
        raise ValueError("no values")
    rank = -(-len(ordered) * percent // 100)  # rounded up
    return ordered[max(0, int(rank) - 1)]


def durations(lines: Iterable[str]) -> list[int]:
    """Ascending durations in microseconds of the answered requests in a log."""
    found = []
    for line in lines:
        _start, status, duration = line.split("\t")
        if status == "200":
            found.append(int(duration))
    return sorted(found)


def read_load(summary: str, log: Iterable[str]) -> Load:
    """What a run saw, from what h2load printed and logged. Raises ValueError when nothing was answered."""
    finished, counts, traffic = (pattern.search(summary) for pattern in (_FINISHED, _REQUESTS, _TRAFFIC))
    if not finished or not counts or not traffic:
        raise ValueError(f"h2load said: {summary[-500:]}")
    succeeded = int(counts[4])
    answered = durations(log)
    if not answered or not succeeded:
        raise ValueError("no request was answered")
    return Load(
        requests=succeeded,
        failed=int(counts[5]) + int(counts[6]) + int(counts[7]),
        p50_us=percentile(answered, 50),
        p95_us=percentile(answered, 95),
        p99_us=percentile(answered, 99),
        per_second=float(finished[1]),
        answer_bytes=int(traffic[3]) / succeeded,
    )
