# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whom a registry's client trusts, and what it presents to a registry that asks who its clients are."""

from __future__ import annotations

import os
import ssl
from pathlib import Path

from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError


def client_context(ca_file: str, ca_certificate: str) -> ssl.SSLContext:
    """Return a context that trusts the authorities of a PEM file or of PEM text, the system's without either."""
    try:
        tls = ssl.create_default_context(cafile=ca_file or None, cadata=ca_certificate or None)
    except OSError as error:  # ssl.SSLError is one
        raise FleetError(
            "The trusted certificate authorities cannot be used",
            where=ca_file or "ca_certificate",
            seen=str(error),
            remedy="run the playbook edgeml.fleet.certificates: each inventory, a copy too, has its own authority"
            if isinstance(error, FileNotFoundError)
            else "give the path of a readable PEM file, or its text",
        ) from error
    tls.minimum_version = ssl.TLSVersion.TLSv1_2
    tls.verify_flags &= ~ssl.VERIFY_X509_STRICT  # Python 3.13 refuses private authorities that older ones take
    return tls


def present(tls: ssl.SSLContext, certificate: str, key: str) -> None:
    """Let a context present this pair (PEM text). It is read from memory: the key is on no disk for that."""
    number = os.memfd_create("pair")
    try:
        with os.fdopen(number, "w", closefd=False) as file:
            file.write(f"{certificate.rstrip()}\n{key.rstrip()}\n")
        # An encrypted key must not ask for its passphrase on a terminal.
        tls.load_cert_chain(f"/proc/self/fd/{number}", password="")
    except (OSError, ValueError) as error:  # ssl.SSLError is one
        raise FleetError(
            "The certificate to present to the registry cannot be used",
            where="client_certificate, client_key",
            seen=getattr(error, "reason", None) or str(error),
            remedy="give a certificate in PEM and its own key, without passphrase",
        ) from error
    finally:
        os.close(number)


def pair_beside(ca_file: str) -> dict[str, str]:
    """Return client_certificate and client_key that lie beside a registry's authority, where the engine finds them too.

    Nothing is returned where they do not both exist: most registries ask for none.
    """
    names = {"client_certificate": "client.cert", "client_key": "client.key"}
    directory = Path(ca_file).parent
    try:
        return {option: (directory / name).read_text() for option, name in names.items()} if ca_file else {}
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise FleetError(
            "The certificate that this host presents to its mirror cannot be read",
            where=str(directory),
            seen=getattr(error, "strerror", "") or "not text",
            remedy="run the playbook edgeml.fleet.site, which writes it anew",
        ) from error
