# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab's networks, and how a site is cut off from the rest of the world.

A site that is cut keeps its LAN. What leaves the LAN is dropped on this machine's bridge, and hosts with
a second leg lose it. Both are state of the machine and its engine, so a power cut of a host changes nothing.
"""

from __future__ import annotations

from typing import Any

from ansible_collections.edgeml.fleet.tests.lab.machine import run
from ansible_collections.edgeml.fleet.tests.lab.topology import Host, Leg, Topology
from docker import DockerClient
from docker.errors import NotFound
from docker.models.containers import Container
from docker.types import EndpointConfig, IPAMConfig, IPAMPool

LABEL = "edgeml.lab"


def network_name(network: str) -> str:
    """Return the name that the engine knows a network of the topology by."""
    return f"edgeml-lab-{network}"


def labelled(topology: str) -> dict[str, str | list[str] | bool]:
    """Return the engine's filter for whatever belongs to a topology."""
    return {"label": f"{LABEL}={topology}"}


def ensure_network(client: DockerClient, topology: Topology, network: str) -> None:
    """Create a network of the topology unless it exists."""
    try:
        client.networks.get(network_name(network))
    except NotFound:
        client.networks.create(
            network_name(network),
            driver="bridge",
            ipam=IPAMConfig(pool_configs=[IPAMPool(subnet=subnet) for subnet in topology.networks[network]]),
            enable_ipv6=any(":" in subnet for subnet in topology.networks[network]),
            labels={LABEL: topology.name},
        )


def endpoint(client: DockerClient, host: Host, leg: Leg) -> EndpointConfig:
    """Return the engine's description of one leg: its address and the names that it answers to."""
    return client.api.create_endpoint_config(**_attachment(host, leg))


def connect(client: DockerClient, host: Host, leg: Leg, container: Container) -> None:
    """Plug one leg of a host in, unless it is."""
    network = client.networks.get(network_name(leg.network))
    if not _is_connected(container, leg):
        network.connect(container, **_attachment(host, leg))


def _attachment(host: Host, leg: Leg) -> dict[str, Any]:
    addresses = {f"ipv{version}_address": address for version, address in leg.addresses.items()}
    return {**addresses, "aliases": [host.name, *leg.names]}


def is_cut(topology: Topology, site: str) -> bool:
    """Tell whether a site is cut off."""
    return any(_comment(topology, site) in line for line in _rules())


def cut(client: DockerClient, topology: Topology, site: str) -> None:
    """Cut a site off from everything outside its LAN. Nothing happens when it is cut already."""
    if not is_cut(topology, site):
        bridge = f"br-{str(client.networks.get(network_name(site)).id)[:12]}"
        comment = ["-m", "comment", "--comment", _comment(topology, site), "-j", "DROP"]
        # The controller's own connections to the hosts, such as SSH, do not pass these rules.
        for rule in (
            ["DOCKER-USER", "-i", bridge, "!", "-o", bridge],
            ["DOCKER-USER", "-o", bridge, "!", "-i", bridge],
            ["INPUT", "-i", bridge, "-m", "conntrack", "--ctstate", "NEW"],
        ):
            run(["iptables", "-w", "-I", *rule, *comment], root=True)
    for _, leg, container in _legs_out_of(client, topology, site):
        if _is_connected(container, leg):
            client.networks.get(network_name(leg.network)).disconnect(container)


def restore(client: DockerClient, topology: Topology, site: str) -> None:
    """Undo `cut`. Nothing happens when the site is not cut."""
    remove_rules(_comment(topology, site))
    for host, leg, container in _legs_out_of(client, topology, site):
        connect(client, host, leg, container)


def remove_rules(comment: str) -> None:
    """Remove the packet filter rules whose comment contains the given text."""
    for line in _rules():
        if comment in line:
            chain, rule = line.removeprefix("-A ").split(" ", 1)
            run(["iptables", "-w", "-D", chain, *rule.replace('"', "").split()], root=True)


def _comment(topology: Topology, site: str) -> str:
    return f"{LABEL}={topology.name}:{site}:"


def _rules() -> list[str]:
    return run(["iptables", "-w", "-S"], root=True).splitlines()


def _legs_out_of(client: DockerClient, topology: Topology, site: str) -> list[tuple[Host, Leg, Container]]:
    return [
        (host, leg, client.containers.get(f"edgeml-lab-{host.name}"))
        for host in topology.hosts.values()
        if host.legs[0].network == site
        for leg in host.legs[1:]
    ]


def _is_connected(container: Container, leg: Leg) -> bool:
    container.reload()
    return network_name(leg.network) in container.attrs["NetworkSettings"]["Networks"]
