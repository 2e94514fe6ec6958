# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Judge ports, and whether what is missing can be had from the registry."""

from __future__ import annotations

import errno
import os
import socket
from collections import Counter
from collections.abc import Iterator, Sequence

from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.failures import (
    RefusedError,
    UnknownNameError,
    UnreachableError,
    UntrustedError,
)
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.registry import Registry
from ansible_collections.edgeml.fleet.plugins.module_utils._preflight.host import (
    REFUSE,
    STEP_SECONDS,
    Content,
    Engine,
    Finding,
    Host,
    RegistryAccess,
    Wanted,
)

LAST_PORT = 65535


def ports(host: Host, engine: Engine, wanted: Wanted) -> Iterator[Finding]:
    ours = _our_ports(host, engine)
    uses = Counter(port.port for port in wanted.ports)
    for port in wanted.ports:
        if uses[port.port] > 1:
            variables = ", ".join(sorted({other.variable for other in wanted.ports if other.port == port.port}))
            yield Finding(
                "port", REFUSE, f"{port.port} is given twice", "one port for each", f"change one of {variables}"
            )
            uses[port.port] = 0
        if not 1 <= port.port <= LAST_PORT:
            need = f"a port from 1 to {LAST_PORT}"
            yield Finding("port", REFUSE, f"{port.port} is not a TCP port", need, f"change {port.variable}")
            continue
        address = port.address.strip("[]")
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                # A port that we hold passes on with the release; its new address has to be the host's all the same.
                probe.bind((address, 0 if port.port in ours else port.port))
            except (OSError, UnicodeError) as error:  # the latter of what can be no name
                where = f"{port.address}:{port.port}"
                if getattr(error, "errno", 0) == errno.EADDRINUSE:
                    value = f"{where} is held by {_listener(host, port.port) or 'another program'}"
                    need, remedy = "a free port", f"stop that program, or change {port.variable}"
                else:
                    value = f"{where}: {getattr(error, 'strerror', '') or error}"
                    need, remedy = "an address of this host", f"correct the address that goes with {port.variable}"
                yield Finding("port", REFUSE, value, need, remedy)


def _our_ports(host: Host, engine: Engine) -> set[int]:
    """Return the ports on which our containers listen, published or in the host's network."""
    ports: set[int] = set()
    identifiers = [container["Id"] for container in engine.containers]
    for container in engine.containers:
        for bindings in (container.get("NetworkSettings", {}).get("Ports") or {}).values():
            ports |= {int(binding["HostPort"]) for binding in bindings or ()}
    if identifiers:
        for port, process in _listeners(host).items():
            group = host.text(f"/proc/{process}/cgroup")
            if any(identifier in group for identifier in identifiers):
                ports.add(port)
    return ports


def _listener(host: Host, port: int) -> str:
    process = _listeners(host).get(port)
    return f"{host.text(f'/proc/{process}/comm').strip()} (process {process})" if process else ""


def _listeners(host: Host) -> dict[int, str]:
    """Return listening TCP ports and the id of a process that holds each."""
    sockets: dict[str, int] = {}
    for table in ("tcp", "tcp6"):
        for line in host.text(f"/proc/net/{table}").splitlines()[1:]:
            parts = line.split()
            if parts[3] == "0A":  # listening
                sockets[f"socket:[{parts[9]}]"] = int(parts[1].rpartition(":")[2], 16)
    found: dict[int, str] = {}
    for link in host.path("/proc").glob("[0-9]*/fd/*"):
        try:
            target = os.readlink(link)
        except OSError:
            continue  # it has ended, or was closed
        if target in sockets:
            found.setdefault(sockets[target], link.parts[-3])
    return found


def registry(wanted: Wanted, missing: Sequence[Content]) -> Iterator[Finding]:
    """Whether what is missing can be had. A host that has everything needs no registry."""
    if wanted.serves_models:  # what a mirror on the same host lacks comes from elsewhere
        missing = [content for content in missing if content.kind != "mirrored"]
    if wanted.registry is None or not missing:
        return
    try:
        lacking = _lacking(wanted.registry, missing)
    except FleetError as error:
        yield _registry_problem(wanted.registry, error)
        return
    if lacking:
        yield Finding(
            "content",
            REFUSE,
            f"{wanted.registry.address} lacks {', '.join(lacking[:3])}{' and more' if len(lacking) > 3 else ''}",
            "all that the lock names for this host",
            "run the playbook edgeml.fleet.mirror (for a store edgeml.fleet.publish)",
        )


def _lacking(access: RegistryAccess, missing: Sequence[Content]) -> list[str]:
    """Return the names of the content that the registry does not hold either; raise FleetError if it cannot say."""
    client = Registry(
        access.address,
        access.username,
        access.password,
        timeout=STEP_SECONDS,
        ca_certificate=access.ca_certificate,
        ip_address=access.ip_address,
        patient=False,
        client_certificate=access.client_certificate,
        client_key=access.client_key,
    )
    try:
        client.ping()
        holds = {True: client.has_blob, False: client.has_manifest}
        return [
            content.name
            for content in missing
            if not holds[content.kind == "model"](content.repository, content.digest)
        ]
    finally:
        client.close()


def _registry_problem(access: RegistryAccess, error: FleetError) -> Finding:
    name, need, remedy = "registry", "an OCI registry that answers over TLS", error.remedy
    if isinstance(error, UnknownNameError):
        name, need = "name_resolution", "the address of the registry"
        remedy = (
            "let the name service know the name, or set edgeml_mirror_ip_address (of a store edgeml_store_ip_address)"
        )
    elif isinstance(error, UnreachableError):
        remedy = (
            "start it (playbook edgeml.fleet.mirror or edgeml.fleet.store), or correct address, routes or firewalls"
        )
    elif isinstance(error, UntrustedError):
        name = "registry_tls"
        need = "a certificate of the authority in edgeml_ca_certificate_file, for this name and time"
        remedy = "renew the registry's certificate (playbook edgeml.fleet.certificates), or set this host's clock"
    elif isinstance(error, RefusedError):
        need = "a registry that lets this host in"
        if access.username:
            remedy = "correct user name and password"
    place = f"{access.address} at {access.ip_address}" if access.ip_address else access.address
    return Finding(name, REFUSE, f"{place}: {error.seen or error.what}", need, remedy)
