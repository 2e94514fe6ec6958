# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A private authority as people make one with two lines of openssl serves with every Python."""

from __future__ import annotations

import ipaddress
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.edgeml.fleet.plugins.module_utils._inference.connect import connect
from ansible_collections.edgeml.fleet.tests.support.registry_server import Answer, Server, start
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat


def certificate(name: str, key: ec.EllipticCurvePrivateKey, issuer: str, by: ec.EllipticCurvePrivateKey) -> bytes:
    """Return a certificate without key identifiers and key usage, which RFC 5280 asks for."""
    named, made_by = (x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)]) for text in (name, issuer))
    builder = x509.CertificateBuilder().subject_name(named).issuer_name(made_by).public_key(key.public_key())
    builder = builder.serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(datetime.now(UTC) - timedelta(days=1))
    builder = builder.not_valid_after(datetime.now(UTC) + timedelta(days=1))
    if name == issuer:
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=False)
    else:
        names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
        builder = builder.add_extension(names, critical=False)
    return builder.sign(by, SHA256()).public_bytes(Encoding.PEM)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server of a plain authority, asked by a Python that is as strict as 3.13."""
    authority, own = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    (tmp_path / "ca.crt").write_bytes(certificate("authority", authority, "authority", authority))
    pem = own.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
    (tmp_path / "server.pem").write_bytes(certificate("server", own, "authority", authority) + pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "server.pem")
    make = ssl.create_default_context

    def strict(**options: Any) -> ssl.SSLContext:
        made = make(**options)
        made.verify_flags |= ssl.VERIFY_X509_STRICT
        return made

    monkeypatch.setattr(ssl, "create_default_context", strict)
    made, stop = start(context, str(tmp_path / "ca.crt"), lambda request: Answer(200, b"{}"))
    yield made
    stop()


def test_a_registry(server: Server) -> None:
    server.registry().ping()


def test_an_inference_server(server: Server) -> None:
    with connect(f"https://{server.address}", ca_file=server.ca_file) as client:
        assert client.live()
