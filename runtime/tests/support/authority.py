# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""A certificate authority of the tests' own."""

import ssl
from pathlib import Path

import grpc  # type: ignore[import-untyped]
import trustme


class Authority:
    """A private CA with a server certificate for 127.0.0.1 and a client certificate, as PEM files."""

    def __init__(self, directory: Path, client_name: str = "client") -> None:
        authority = trustme.CA()
        server = authority.issue_cert("127.0.0.1")
        client = authority.issue_cert("client@example.internal", common_name=client_name)
        self.ca, self.certificate, self.key = directory / "ca.crt", directory / "server.crt", directory / "server.key"
        self.client_certificate, self.client_key = directory / "client.crt", directory / "client.key"
        authority.cert_pem.write_to_path(self.ca)
        for issued, certificate, key in (
            (server, self.certificate, self.key),
            (client, self.client_certificate, self.client_key),
        ):
            issued.cert_chain_pems[0].write_to_path(certificate)
            issued.private_key_pem.write_to_path(key)

    @property
    def files(self) -> dict[str, str]:
        """The configuration's "tls"."""
        return {"certificate": str(self.certificate), "key": str(self.key)}

    def context(self, with_certificate: bool = False) -> ssl.SSLContext:
        """Trusts this authority alone."""
        context = ssl.create_default_context(cafile=str(self.ca))
        if with_certificate:
            context.load_cert_chain(self.client_certificate, self.client_key)
        return context

    def credentials(self, with_certificate: bool = False) -> grpc.ChannelCredentials:
        """The same for gRPC."""
        if not with_certificate:
            return grpc.ssl_channel_credentials(self.ca.read_bytes())
        return grpc.ssl_channel_credentials(
            self.ca.read_bytes(), self.client_key.read_bytes(), self.client_certificate.read_bytes()
        )
