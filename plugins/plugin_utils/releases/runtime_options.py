# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the inventory says of the collection's runtime itself, checked before a host is touched."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

from ansible_collections.edgeml.fleet.plugins.plugin_utils.addresses import address_host
from ansible_collections.edgeml.fleet.plugins.plugin_utils.documents.problem import Problem, choices
from ansible_collections.edgeml.fleet.plugins.plugin_utils.documents.schema import SECRETS, native, origins, validate
from ansible_collections.edgeml.fleet.plugins.plugin_utils.releases.role_variables import (
    LISTEN_REMEDY,
    NOT_SHOWN,
    is_address,
    is_secret,
    role_options,
    variable_problems,
)

PREFIX = "inference_runtime_"
# What the role's own tasks register, which stands among a host's variables as well.
REGISTERED = ("preflight", "result", "health", "latency", "kernel", "rolled_back")


def runtime_access(grants: Sequence[Mapping[str, Any]], directory: str) -> dict[str, list[dict[str, Any]]]:
    """Return ``grants`` as the runtime's configuration has them, and ``secrets``: name and content of its token files.

    `grants` is inference_runtime_access, `directory` that of the secrets on the host.
    """
    written, secrets = [], []
    for index, grant in enumerate(grants):
        entry = {key: value for key, value in grant.items() if key != "token"}
        if "token" in grant:
            name = f"access_{index}_token"
            secrets.append({"name": name, "content": grant["token"]})
            entry["token_file"] = f"{directory}/{name}"
        written.append(entry)
    return {"grants": written, "secrets": secrets}


def known_variables() -> tuple[str, ...]:
    """Return the names of the role's variables."""
    return tuple(name for name in role_options() if name.startswith(PREFIX))


def option_problems(options: Mapping[str, Any], variables: Mapping[str, Any]) -> list[Problem]:
    """Return what the runtime, or the role, would refuse later.

    Each variable of a role is held against its specification. `options` are the role's variables whose content goes to
    the runtime, by name, of inference_runtime_bearer_token whether there is one; `variables` all of the host: those
    that begin like the role's have to be known to it.
    """
    problems = variable_problems(variables)
    document = {name: _without_secrets(native(value)) for name, value in options.items()}
    problems += [
        replace(_without_value(problem), file=file, line=line)
        for problem in validate(document, "variables")
        for file, line in [origins(options, problem.path).find(problem.path)]
    ]
    if not problems:
        problems += _broker(document.get(f"{PREFIX}mqtt") or {})
        problems += _clients({name.removeprefix(PREFIX): value for name, value in document.items()})
    known = {*known_variables(), *(PREFIX + name for name in REGISTERED)}
    unknown = sorted({str(name) for name in variables if str(name).startswith(PREFIX)} - known)
    problems += [
        Problem("The role inference_runtime has no such variable", (name,), "", choices(known_variables(), name))
        for name in unknown
    ]
    return problems


def _clients(options: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield what keeps clients, and the host's own checks among them, from being told from anybody else."""
    token, authority = options.get("bearer_token"), options.get("tls_client_ca_file")
    access = options.get("access") or []
    by_certificate = any("certificate_name" in grant for grant in access)
    has_tls = options.get("tls_certificate_file")
    address = str(options.get("listen_address", "localhost"))
    listen = address_host(address)
    pair = f"set {PREFIX}tls_certificate_file and {PREFIX}tls_key_file"
    if not is_address(address):
        path = (f"{PREFIX}listen_address",)
        yield Problem("The runtime cannot listen at what is no address", path, repr(address), LISTEN_REMEDY)
    elif not _is_loopback(listen) and not (has_tls and (token or authority)):
        yield Problem(
            "The runtime would listen in clear or without a check of its clients",
            (f"{PREFIX}listen_address",),
            listen,
            f"{pair}, and {PREFIX}bearer_token or {PREFIX}tls_client_ca_file, "
            f"or set {PREFIX}listen_address to 127.0.0.1",
        )
    if authority and not (has_tls and options.get("tls_check_certificate_file") and options.get("tls_check_key_file")):
        yield Problem(
            "Clients need a certificate, and the host's own checks have none",
            (f"{PREFIX}tls_client_ca_file",),
            str(authority),
            f"{pair}, and for the checks {PREFIX}tls_check_certificate_file and {PREFIX}tls_check_key_file",
        )
    if access and not token and not by_certificate:
        yield Problem(
            "Clients need a token, and the host's own checks have none",
            (f"{PREFIX}access",),
            f"no {PREFIX}bearer_token",
            f"set {PREFIX}bearer_token",
        )
    if by_certificate and not authority:
        yield Problem(
            "A client is told by a certificate, and no authority of client certificates is known",
            (f"{PREFIX}access",),
            f"certificate_name without {PREFIX}tls_client_ca_file",
            f"set {PREFIX}tls_client_ca_file, or give that client a token",
        )


def _broker(mqtt: Mapping[str, Any]) -> Iterator[Problem]:
    if mqtt and not is_address(str(mqtt["host"])):
        yield Problem(
            "The broker's host is neither a name nor an IP address",
            (f"{PREFIX}mqtt", "host"),
            NOT_SHOWN,
            "give the name or address alone; user, password and port have keys of their own",
        )
    elif mqtt and not mqtt.get("ca_certificate_file") and not _is_loopback(str(mqtt["host"])):
        yield Problem(
            "Requests would reach the broker in clear",
            (f"{PREFIX}mqtt", "host"),
            NOT_SHOWN,
            "set ca_certificate_file to the broker's certificate authority, or use a broker on the device itself",
        )


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _without_value(problem: Problem) -> Problem:
    """Return the problem without the value that was seen, if that may be a secret."""
    if not is_secret(str(problem.path[0])):
        return problem
    return replace(problem, seen=NOT_SHOWN, remedy=re.sub(r", in quotes, .* here\)", ", in quotes", problem.remedy))


def _without_secrets(value: Any) -> Any:
    """Return `value` with a word in place of each secret: no message may show one."""
    if isinstance(value, Mapping):
        return {
            key: "(secret)" if key in SECRETS and not isinstance(item, (Mapping, list)) else _without_secrets(item)
            for key, item in value.items()
        }
    return [_without_secrets(item) for item in value] if isinstance(value, list) else value
