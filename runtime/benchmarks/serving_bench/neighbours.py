# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""How much of the machine others took while we measured: figures of a busy machine are provisional."""

import os
import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass

import psutil

from serving_bench.processes import ProcessTree


@dataclass(frozen=True)
class Moment:
    """Seconds: of the clock, of processor time on the whole machine, and of that our own."""

    clock: float
    machine: float
    own: float


def moment(servers: Sequence[ProcessTree]) -> Moment:
    """Now. Ours are this process, the clients that have ended and the servers."""
    times = psutil.cpu_times()
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    own = sum(usage.ru_utime + usage.ru_stime for usage in usages) + sum(tree.cpu_seconds() for tree in servers)
    # Guests are counted in user and nice already; steal is a neighbour outside this machine.
    machine = times.user + times.nice + times.system + times.irq + times.softirq + times.steal
    return Moment(time.monotonic(), machine, own)


def others_percent(before: Moment, after: Moment) -> float:
    """Percent of all cores that others took between two moments."""
    available = (after.clock - before.clock) * (os.cpu_count() or 1)
    taken = (after.machine - before.machine) - (after.own - before.own)
    return max(0.0, 100 * taken / available)
