# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which hosts a rollout takes in which wave. Pure functions."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from ansible_collections.edgeml.fleet.plugins.plugin_utils.rollout.settings import Settings


@dataclass(frozen=True)
class Wave:
    """Hosts that change at the same time. `number` counts from 1, also over runs that were cut short."""

    number: int
    name: str
    hosts: tuple[str, ...]


def plan_waves(
    hosts: Sequence[str],
    settings: Settings,
    canaries: Collection[str] = (),
    sites: Mapping[str, str] | None = None,
    done: int = 0,
    finished: int = 0,
) -> list[Wave]:
    """Return the waves, which hold each of `hosts` once, in order.

    The canaries go first, then waves that grow. Hosts of one site beyond `per_site` wait for a later wave, so that a
    wave may be smaller than its turn allows.

    Parameters
    ----------
    sites : mapping
        Site of each host. Hosts without one are not limited.
    done : int
        How many hosts beside the canaries an earlier run of the same rollout has brought to the release: the waves go
        on with the size that they had reached.
    finished : int
        Number of the last wave of that run.
    """
    sites = sites or {}
    first = [host for host in hosts if host in canaries]
    rest = [host for host in hosts if host not in canaries]
    waves = [("canary", taken) for taken in _parts(first, sites, settings.per_site, itertools.repeat(len(first)))]
    sizes = _sizes(settings.first_size(len(rest) + done), settings.growth, len(rest) + done)
    while done > 0:
        size = next(sizes)
        if size > done:  # the wave in which that run ended
            sizes = itertools.chain([size], sizes)
        done -= size
    waves += [("", taken) for taken in _parts(rest, sites, settings.per_site, sizes)]
    return [Wave(number, name, tuple(taken)) for number, (name, taken) in enumerate(waves, finished + 1)]


def _sizes(first: int, growth: float, hosts: int) -> Iterator[int]:
    """Yield the sizes of waves, without end, none larger than `hosts`."""
    size = float(first)
    while True:
        yield round(size)
        size = min(size * growth, hosts)


def _parts(hosts: Sequence[str], sites: Mapping[str, str], per_site: int, sizes: Iterator[int]) -> Iterator[list[str]]:
    """Yield the hosts in parts of the given sizes, with at most `per_site` of one site in each (0 for any number)."""
    left = list(hosts)
    for size in sizes:
        if not left:
            return
        taken: list[str] = []
        others: list[str] = []
        of_site: dict[str, int] = {}
        for host in left:
            site = sites.get(host, "")
            full = bool(per_site and site) and of_site.get(site, 0) >= per_site
            if len(taken) < size and not full:
                taken.append(host)
                of_site[site] = of_site.get(site, 0) + 1
            else:
                others.append(host)
        yield taken
        left = others
