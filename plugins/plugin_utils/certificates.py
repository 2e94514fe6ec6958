# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A private certificate authority in a directory of the controller, and the certificates that it signs (RFC 5280).

All of it is in the controller's own process: a module's process for each step took two seconds for each host.
"""

from __future__ import annotations

import fcntl
import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._host.files import read_if_there, replace_file
from ansible_collections.edgeml.fleet.plugins.plugin_utils.libraries import missing_library

try:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
        load_pem_private_key,
    )
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
except ImportError as error:
    _without_cryptography: ImportError | None = error
else:
    _without_cryptography = None

COMMON_NAME_LENGTH = 64  # characters (RFC 5280, appendix A.1, ub-common-name)


@dataclass(frozen=True)
class Validity:
    """Start and end, as RFC 5280 writes a GeneralizedTime: 20200101000000Z."""

    not_before: str
    not_after: str

    def apply(self, builder: Any) -> Any:
        """Return the builder of a certificate with both set; raise FleetError if either is not a time."""
        start = _time(self.not_before, "private_ca_not_before")
        end = _time(self.not_after, "private_ca_not_after")
        if start >= end:
            raise FleetError(
                "The certificates would end before they begin",
                where="private_ca_not_after",
                seen=f"{self.not_after}, private_ca_not_before is {self.not_before}",
                remedy="set a later end",
            )
        return builder.not_valid_before(start).not_valid_after(end)


class PrivateAuthority:
    """The authority of a directory: ca.key and ca.crt, and for each host HOST.key, HOST.crt and HOST.names.

    Raise FleetError if the controller lacks the library cryptography.
    """

    def __init__(self, directory: Path, name: str, validity: Validity) -> None:
        if _without_cryptography:
            raise missing_library(_without_cryptography)
        self.directory = directory
        self.name = name
        self.validity = validity

    @property
    def exists(self) -> bool:
        return self._path("ca.crt").is_file() and self._path("ca.key").is_file()

    def certify(
        self, host: str, server_name: str, names: Sequence[str], *, check_mode: bool, client: bool = False
    ) -> dict[str, Any]:
        """Have a key and a certificate of a host, and the authority that signs it.

        Parameters
        ----------
        host : str
            Its files' name.
        server_name : str
            The certificate's common name, cut to 64 characters.
        names : sequence of str
            ``DNS:name`` or ``IP:address``, for each that clients ask for.
        client : bool
            Whether its host may present the certificate to others. One that may stays so.

        Returns
        -------
        dict
            {"changed", "msg"}.

        Raises
        ------
        FleetError
            If a name, a time or a key that is there cannot be used, or a file cannot be written.
        """
        alternatives = [_alternative(name) for name in names]
        if self.exists and self._is_current(host, names, client):
            return {"changed": False, "msg": f"{self._path(f'{host}.crt')} is current"}
        made = f"the certificate {self._path(f'{host}.crt')} for {', '.join(names)}"
        if not self.exists:
            made = f"the authority {self._path('ca.crt')} and {made}"
        if check_mode:
            return {"changed": True, "msg": f"Would make {made}"}
        try:
            with self._locked():
                if not self.exists:
                    self._make_authority()
                self._make_certificate(host, server_name, alternatives, client)
                replace_file(self._path(f"{host}.names"), self._subject(names).encode())
        except OSError as error:
            raise FleetError(
                "A certificate cannot be written",
                where=str(error.filename or self.directory),
                seen=error.strerror or str(error),
                remedy="make private_ca_directory a directory that this user may write to",
            ) from error
        return {"changed": True, "msg": f"Made {made}"}

    def _path(self, name: str) -> Path:
        return self.directory / name

    def _subject(self, names: Sequence[str]) -> str:
        """Return what a certificate is made for: other names or another authority need another certificate."""
        authority = self._path("ca.crt").read_text().rstrip()
        return " ".join([hashlib.sha256(authority.encode()).hexdigest(), *sorted(names, key=str.lower)])

    def _is_current(self, host: str, names: Sequence[str], client: bool) -> bool:
        record, held = (read_if_there(self._path(f"{host}.{suffix}")) for suffix in ("names", "crt"))
        if record is None or held is None or not self._path(f"{host}.key").is_file():
            return False
        try:
            fits = not client or is_for_clients(x509.load_pem_x509_certificate(held))
        except ValueError:
            fits = False
        return fits and record.decode().rstrip() == self._subject(names)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hosts come at the same time, and have one authority."""
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._path(".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _make_authority(self) -> None:
        key = self._key("ca")
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, self.name[:COMMON_NAME_LENGTH])])
        usage = dict.fromkeys(
            (
                "digital_signature",
                "content_commitment",
                "key_encipherment",
                "data_encipherment",
                "key_agreement",
                "encipher_only",
                "decipher_only",
            ),
            False,
        )
        builder = (
            self._builder(name, name, key)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(x509.KeyUsage(**usage, key_cert_sign=True, crl_sign=True), critical=True)
        )
        self._write("ca", builder.sign(key, SHA256()))

    def _make_certificate(self, host: str, server_name: str, alternatives: Sequence[Any], client: bool) -> None:
        authority = x509.load_pem_x509_certificate(self._path("ca.crt").read_bytes())
        signing = _load_key(self._path("ca.key"))
        key = self._key(host)
        common_name = x509.NameAttribute(NameOID.COMMON_NAME, server_name[:COMMON_NAME_LENGTH])
        identifier = authority.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        uses = [ExtendedKeyUsageOID.SERVER_AUTH] + [ExtendedKeyUsageOID.CLIENT_AUTH] * client
        builder = (
            self._builder(x509.Name([common_name]), authority.subject, key)
            .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
            .add_extension(x509.ExtendedKeyUsage(uses), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False)
        )
        self._write(host, builder.sign(signing, SHA256()))

    def _builder(self, subject: Any, issuer: Any, key: Any) -> Any:
        builder = x509.CertificateBuilder(issuer_name=issuer, subject_name=subject, public_key=key.public_key())
        builder = builder.serial_number(x509.random_serial_number())
        identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        return self.validity.apply(builder).add_extension(identifier, critical=False)

    def _key(self, name: str) -> Any:
        """Return the key that is there, or a new one: ECDSA P-256."""
        path = self._path(f"{name}.key")
        if path.is_file():
            return _load_key(path)
        key = ec.generate_private_key(ec.SECP256R1())
        replace_file(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), 0o600)
        return key

    def _write(self, name: str, certificate: Any) -> None:
        replace_file(self._path(f"{name}.crt"), certificate.public_bytes(Encoding.PEM))


def is_for_clients(certificate: Any) -> bool:
    """Return whether a certificate may be presented to a server: it says so, or says nothing of its use."""
    try:
        uses = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return True
    return ExtendedKeyUsageOID.CLIENT_AUTH in uses or ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE in uses


def _load_key(path: Path) -> Any:
    try:
        return load_pem_private_key(path.read_bytes(), None)
    except (TypeError, ValueError) as error:
        raise FleetError(
            "A private key cannot be used",
            where=str(path),
            seen="no unencrypted private key in PEM",
            remedy="put one there, or remove the file and the certificate beside it, so that both are made anew",
        ) from error


def _alternative(name: str) -> Any:
    kind, separator, value = name.partition(":")
    try:
        if kind == "IP":
            return x509.IPAddress(ip_address(value))
        if kind == "DNS" and value:
            return x509.DNSName(value)
    except ValueError:
        pass
    raise FleetError(
        "A certificate cannot carry this name",
        where="private_ca_certificate_names",
        seen=name if separator else f"{name}, without its kind",
        remedy="write DNS:registry.edgeml.internal or IP:192.0.2.1",
    )


def _time(text: str, variable: str) -> datetime:
    try:
        return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)
    except ValueError as error:
        raise FleetError(
            "This is not a time",
            where=variable,
            seen=text,
            remedy="write year, month, day, hour, minute and second in UTC, as in 20591231235959Z",
        ) from error
