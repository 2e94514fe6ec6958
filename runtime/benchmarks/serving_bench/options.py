# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""The command line. Needs nothing but the standard library: it is read before any environment is made."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

OURS = "edgeml"
PEERS = ("mlserver", "mlserver-no-pool", "kserve", "litserve", "bentoml", "pytriton")
FLOORS = ("echo", "echo-h2")
SERVERS = (OURS, *PEERS, *FLOORS)
MODELS = ("tiny", "tree", "vision", "file_type")
ENCODINGS = ("json", "binary", "grpc-raw", "grpc-typed")


@dataclass(frozen=True)
class Options:
    """What to run. ``seconds`` is the least time of one run of the load client."""

    servers: tuple[str, ...]
    models: tuple[str, ...]
    encodings: tuple[str, ...]
    clients: tuple[int, ...]
    rounds: int
    seconds: float
    report_only: bool


def read_options(arguments: Sequence[str]) -> Options:
    """Read the command line; ends the program with status 2 when it is wrong."""
    parser = argparse.ArgumentParser(
        prog="make bench",
        description="Compare edgeml-runtime with other inference servers on this machine: latency, throughput, "
        "memory, start-up, size. Results: build/bench/runtime.md, .json, .svg and .png.",
        epilog="Options of 'make bench' go into BENCH, as in: make bench BENCH='--quick --servers edgeml,kserve'",
    )
    parser.add_argument("--servers", type=_names(SERVERS), default=SERVERS, help=f"some of {','.join(SERVERS)}")
    parser.add_argument("--models", type=_names(MODELS), default=MODELS, help=f"some of {','.join(MODELS)}")
    parser.add_argument("--encodings", type=_names(ENCODINGS), default=ENCODINGS, help=f"some of {','.join(ENCODINGS)}")
    parser.add_argument("--clients", type=_counts, default=(1, 8, 32), help="numbers of clients (default: 1,8,32)")
    parser.add_argument("--rounds", type=_count, help="interleaved rounds (default: 3; 1 with --quick)")
    parser.add_argument("--seconds", type=float, help="least time of one load run (default: 0.6; 0.3 with --quick)")
    parser.add_argument("--quick", action="store_true", help="one short round, to see that everything works")
    parser.add_argument("--report-only", action="store_true", help="write the report anew from runtime.json")
    found = parser.parse_args(arguments)
    if found.seconds is not None and not 0.1 <= found.seconds <= 30:
        parser.error("argument --seconds: between 0.1 and 30")
    return Options(
        servers=found.servers,
        models=found.models,
        encodings=found.encodings,
        clients=found.clients,
        rounds=found.rounds or (1 if found.quick else 3),
        seconds=found.seconds or (0.3 if found.quick else 0.6),
        report_only=found.report_only,
    )


class _names:
    def __init__(self, allowed: Sequence[str]) -> None:
        self._allowed = allowed

    def __call__(self, text: str) -> tuple[str, ...]:
        chosen = text.split(",")
        for name in chosen:
            if name not in self._allowed:
                raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(self._allowed)}")
        return tuple(name for name in self._allowed if name in chosen)


def _count(text: str) -> int:
    if not text.isdigit() or not 1 <= int(text) <= 100:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 to 100")
    return int(text)


def _counts(text: str) -> tuple[int, ...]:
    return tuple(sorted({_count(each) for each in text.split(",")}))
