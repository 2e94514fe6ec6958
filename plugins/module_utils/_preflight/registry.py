# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a host finds, reaches and trusts a registry that has what the host lacks. One short conversation."""

from __future__ import annotations

import base64
import http.client
import socket
import ssl
from collections.abc import Iterable
from dataclasses import dataclass, field

TIMEOUT = 5.0  # seconds for each step
ACCEPT = "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json"


@dataclass(frozen=True)
class RegistryAccess:
    """How a registry is reached: ``host:port``, the authority's PEM text, and an IP address unless a name service
    knows the name."""

    address: str
    ip_address: str = ""
    ca_certificate: str = ""
    username: str = ""
    password: str = field(default="", repr=False)


class RegistryProblem(Exception):
    """Why content cannot be had; the parts are those of a finding."""

    def __init__(self, name: str, value: str, need: str, remedy: str) -> None:
        super().__init__(value)
        self.name = name
        self.value = value
        self.need = need
        self.remedy = remedy


def ask_registry(access: RegistryAccess, wanted: Iterable[tuple[str, str, str, str]]) -> None:
    """Raise RegistryProblem unless the registry answers and has all that is `wanted`.

    Each thing is (what people call it, repository, ``blobs`` or ``manifests``, digest).
    """
    name, _, port = access.address.partition(":")
    host = access.ip_address or _resolve(name)
    connection = _Connection(name, int(port or 443), host, access.ca_certificate)
    try:
        status = _status(connection, "GET", "/v2/", access)
        if status != 200:
            raise RegistryProblem(
                "registry",
                f"{access.address} answers with status {status} to /v2/",
                "a registry that lets this host in",
                "correct user name and password" if status in (401, 403) else "look at the log of the server there",
            )
        lacking = [
            what
            for what, repository, kind, digest in wanted
            if _status(connection, "HEAD", f"/v2/{repository}/{kind}/{digest}", access) != 200
        ]
    except ssl.SSLCertVerificationError as error:
        raise RegistryProblem(
            "registry_tls",
            f"{access.address}: {error.verify_message}",
            "a certificate of the authority in edgeml_ca_certificate_file, for this name and time",
            "renew the registry's certificate (playbook edgeml.fleet.certificates), or set this host's clock",
        ) from error
    except (OSError, http.client.HTTPException) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error) or repr(error)
        raise RegistryProblem(
            "registry",
            f"{access.address} at {host}: {reason}",
            "an OCI registry that answers over TLS",
            "start it (playbook edgeml.fleet.mirror or edgeml.fleet.store), or correct address, routes or firewalls",
        ) from error
    finally:
        connection.close()
    if lacking:
        raise RegistryProblem(
            "content",
            f"{access.address} lacks {', '.join(lacking[:3])}{' and more' if len(lacking) > 3 else ''}",
            "all that the lock names for this host",
            "run the playbook edgeml.fleet.mirror (for a store edgeml.fleet.publish)",
        )


def _resolve(name: str) -> str:
    try:
        return str(socket.getaddrinfo(name, None, proto=socket.IPPROTO_TCP)[0][4][0])
    except OSError as error:
        raise RegistryProblem(
            "name_resolution",
            f"{name}: {error.strerror or error}",
            "the address of the registry",
            "let the name service know the name, or set edgeml_mirror_ip_address (of a store edgeml_store_ip_address)",
        ) from error


class _Connection(http.client.HTTPSConnection):
    """Goes to an IP address, and expects there the certificate of a name."""

    def __init__(self, name: str, port: int, ip_address: str, ca_certificate: str) -> None:
        super().__init__(name, port, timeout=TIMEOUT)
        self._ip_address = ip_address
        self._authority = ca_certificate

    def connect(self) -> None:
        context = ssl.create_default_context(cadata=self._authority or None)
        plain = socket.create_connection((self._ip_address, self.port), timeout=TIMEOUT)
        self.sock = context.wrap_socket(plain, server_hostname=self.host)


def _status(connection: http.client.HTTPSConnection, method: str, path: str, access: RegistryAccess) -> int:
    headers = {"Accept": ACCEPT}
    if access.username:
        login = base64.b64encode(f"{access.username}:{access.password}".encode()).decode()
        headers["Authorization"] = f"Basic {login}"
    connection.request(method, path, headers=headers)
    response = connection.getresponse()
    response.read()
    return response.status
