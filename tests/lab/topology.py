# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a lab consists of, read from a file in `topologies/`."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.tests.lab import guises

TOPOLOGIES = Path(__file__).resolve().parent / "topologies"
SUITES = {12: "bookworm", 13: "trixie"}


@dataclass(frozen=True)
class Leg:
    """One network interface of a host: network, address and further DNS names on that network.

    `address6` is a second address, of IPv6. A host whose `address` is of IPv6 has none of IPv4.
    """

    network: str
    address: str
    names: tuple[str, ...]
    address6: str = ""

    @property
    def addresses(self) -> dict[int, str]:
        """The addresses by version of IP."""
        return {ipaddress.ip_address(text).version: text for text in (self.address, self.address6) if text}


@dataclass(frozen=True)
class Host:
    """One host.

    `disk_mb` is the size of /var/lib/edgeml in MiB; None keeps it on the root file system. `engine` tells whether a
    Docker Engine and what else the roles install is there from the start. `guise` is what the host looks like, one of
    `guises.GUISES`.
    """

    name: str
    debian: int
    legs: tuple[Leg, ...]
    disk_mb: int | None
    engine: bool = False
    guise: str = guises.NONE

    @property
    def address(self) -> str:
        """The address by which the controller reaches the host."""
        return self.legs[0].address

    @property
    def base(self) -> str:
        """The base image: the code name of its Debian release, with `-engine` where an engine is installed."""
        return SUITES[self.debian] + ("-engine" if self.engine else "")


@dataclass(frozen=True)
class Topology:
    """A named set of networks (name to subnets), sites (networks that can be cut off) and hosts.

    A network has a subnet of IPv4 and may have one of IPv6.
    """

    name: str
    networks: dict[str, tuple[str, ...]]
    sites: tuple[str, ...]
    hosts: dict[str, Host]

    @classmethod
    def load(cls, path: Path) -> Topology:
        """Read and check a topology file; its stem is the topology's name.

        Raises
        ------
        FleetError
            The file is missing, is no YAML or describes no sound lab.
        """
        try:
            data = yaml.safe_load(path.read_text())
            topology = cls(
                name=path.stem,
                networks={name: _subnets(entry) for name, entry in data["networks"].items()},
                sites=tuple(data.get("sites", ())),
                hosts={name: _host(name, entry) for name, entry in data["hosts"].items()},
            )
            topology._check()
        except FileNotFoundError as error:
            known = ", ".join(sorted(file.stem for file in TOPOLOGIES.glob("*.yml")))
            raise FleetError("no such topology", where=str(path), remedy=f"choose one of: {known}") from error
        except (yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise FleetError(
                "the topology cannot be used",
                where=str(path),
                seen=f"{type(error).__name__}: {error}",
                remedy="compare it with topologies/fleet.yml",
            ) from error
        return topology

    @classmethod
    def named(cls, name: str) -> Topology:
        """Read the topology `name` of the folder `topologies/`. Raises FleetError as `load` does."""
        return cls.load(TOPOLOGIES / f"{name}.yml")

    def host(self, name: str) -> Host:
        """Return the host `name`, or raise FleetError that lists the hosts there are."""
        if name not in self.hosts:
            raise FleetError(
                "no such host", where=f"lab {self.name}", seen=name, remedy=f"choose one of: {', '.join(self.hosts)}"
            )
        return self.hosts[name]

    def _check(self) -> None:
        subnets = {name: [ipaddress.ip_network(entry) for entry in entries] for name, entries in self.networks.items()}
        if unknown := set(self.sites) - set(subnets):
            raise ValueError(f"sites without a network: {sorted(unknown)}")
        taken: set[str] = set()
        for host in self.hosts.values():
            if not host.legs:
                raise ValueError(f"{host.name} has no leg")
            for leg in host.legs:
                for address in leg.addresses.values():
                    if not any(ipaddress.ip_address(address) in subnet for subnet in subnets[leg.network]):
                        raise ValueError(f"{host.name}: {address} is not in {', '.join(self.networks[leg.network])}")
                    if address in taken:
                        raise ValueError(f"{host.name}: {address} is given twice")
                    taken.add(address)
            # The controller must still reach a host whose site is cut, so a site's network comes first.
            if any(leg.network in self.sites for leg in host.legs[1:]):
                raise ValueError(f"{host.name}: the leg in its site must be the first")


def _subnets(entry: str | list[str]) -> tuple[str, ...]:
    return (entry,) if isinstance(entry, str) else tuple(entry)


def _host(name: str, entry: dict[str, Any]) -> Host:
    unknown = set(entry) - {"debian", "legs", "disk_mb", "engine", "guise"}
    if unknown:
        raise ValueError(f"{name}: unknown keys {sorted(unknown)}")
    if entry["debian"] not in SUITES:
        raise ValueError(f"{name}: debian must be one of {sorted(SUITES)}, not {entry['debian']!r}")
    if entry.get("guise", guises.NONE) not in guises.GUISES:
        raise ValueError(f"{name}: guise must be one of {sorted(guises.GUISES)}, not {entry['guise']!r}")
    legs = tuple(
        Leg(network, leg["address"], tuple(leg.get("names", ())), leg.get("address6", ""))
        for network, leg in entry["legs"].items()
    )
    disk_mb, engine, guise = entry.get("disk_mb"), entry.get("engine", False), entry.get("guise", guises.NONE)
    return Host(name, entry["debian"], legs, disk_mb, engine, guise)
