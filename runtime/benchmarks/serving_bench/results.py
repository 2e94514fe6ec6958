# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""What a run measured, as one JSON file: the report is made from it alone."""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Sample:
    """One run of the load client against one server. Latency in microseconds, throughput in requests per second."""

    round: int
    server: str
    model: str
    encoding: str
    clients: int
    requests: int
    failed: int
    p50_us: float
    p95_us: float
    p99_us: float
    per_second: float
    cpu_seconds_per_1000: float


@dataclass(frozen=True)
class Start:
    """A start of a server with all models. Seconds to the first right answer, and memory of the tree (PSS) in bytes."""

    round: int
    server: str
    cold_start_seconds: float
    idle_pss_bytes: int
    loaded_pss_bytes: int
    """The most that was seen while 32 clients were asking."""
    idle_cpu_percent: float
    """Of one core, while nobody asks."""


@dataclass(frozen=True)
class EngineSample:
    """The engine alone, right before the servers were asked in this encoding.

    Latency of one process in microseconds; ``two_per_second`` of two processes together.
    """

    round: int
    model: str
    encoding: str
    p50_us: float
    p95_us: float
    p99_us: float
    two_per_second: float


@dataclass(frozen=True)
class Absence:
    """What was not measured, and why."""

    server: str
    model: str
    encoding: str
    reason: str


@dataclass
class Results:
    """Everything that a run measured."""

    about: dict[str, Any] = field(default_factory=dict)
    servers: list[str] = field(default_factory=list)
    models: list[str] = field(default_factory=list)
    installed_bytes: dict[str, int] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)
    starts: list[Start] = field(default_factory=list)
    engine: list[EngineSample] = field(default_factory=list)
    absences: list[Absence] = field(default_factory=list)
    others_percent: list[float] = field(default_factory=list)
    """What other processes took of the machine's processor time, for each model and encoding of each round."""

    def write(self, file: Path) -> None:
        """Write the JSON file."""
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(dataclasses.asdict(self), indent=1) + "\n", encoding="utf-8")


def read_results(file: Path) -> Results:
    """Read what ``Results.write`` wrote."""
    document = json.loads(file.read_text(encoding="utf-8"))
    for key, kind in (("samples", Sample), ("starts", Start), ("engine", EngineSample), ("absences", Absence)):
        document[key] = [kind(**each) for each in document[key]]
    return Results(**document)
