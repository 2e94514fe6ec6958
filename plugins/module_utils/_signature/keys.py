# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Public keys that are trusted to sign: ECDSA P-256 and Ed25519."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._signature.libcrypto import is_signed

# SubjectPublicKeyInfo in DER up to the key itself (RFC 5480, RFC 8410): nothing else is accepted.
P256_PREFIX = bytes.fromhex("3059301306072a8648ce3d020106082a8648ce3d03010703420004")
P256_LENGTH = len(P256_PREFIX) + 64
ED25519_PREFIX = bytes.fromhex("302a300506032b6570032100")
ED25519_LENGTH = len(ED25519_PREFIX) + 32
NAME_LENGTH = 16  # hexadecimal digits


class Signer(Protocol):
    """Returns the name of the trusted key that made a signature over a message, None if none did."""

    def __call__(self, message: bytes, signature: bytes, /) -> str | None: ...


_PEM = re.compile(r"\s*-----BEGIN PUBLIC KEY-----\s+([A-Za-z0-9+/=\s]+)-----END PUBLIC KEY-----\s*")


@dataclass(frozen=True)
class PublicKey:
    """A public key: `der` is its SubjectPublicKeyInfo."""

    der: bytes

    @classmethod
    def from_pem(cls, text: object, where: str) -> PublicKey:
        """Return the key that a PEM text holds; raise FleetError that names `where` if it is of no kind known here."""
        found = _PEM.fullmatch(text) if isinstance(text, str) else None
        try:
            der = base64.b64decode("".join(found[1].split()), validate=True) if found else b""
        except binascii.Error:
            der = b""
        if (der.startswith(P256_PREFIX) and len(der) == P256_LENGTH) or (
            der.startswith(ED25519_PREFIX) and len(der) == ED25519_LENGTH
        ):
            return cls(der)
        raise FleetError(
            "Not a public key that can verify signatures",
            where=where,
            seen=repr(text)[:60],
            remedy="give the PEM text of an ECDSA P-256 or Ed25519 public key (BEGIN PUBLIC KEY)",
        )

    @property
    def name(self) -> str:
        """The first digits of the SHA-256 digest of the key in DER, by which people and signature files name it."""
        return key_name(self.der)

    @property
    def is_ed25519(self) -> bool:
        return self.der.startswith(ED25519_PREFIX)

    @property
    def pem(self) -> str:
        text = base64.b64encode(self.der).decode()
        lines = [text[start : start + 64] for start in range(0, len(text), 64)]
        return "\n".join(["-----BEGIN PUBLIC KEY-----", *lines, "-----END PUBLIC KEY-----", ""])


def key_name(der: bytes) -> str:
    """Return what a public key in DER is called."""
    return hashlib.sha256(der).hexdigest()[:NAME_LENGTH]


class TrustedKeys:
    """The public keys whose signatures count."""

    def __init__(self, pems: Sequence[object]) -> None:
        found = [PublicKey.from_pem(pem, f"edgeml_trusted_keys[{index}]") for index, pem in enumerate(pems)]
        self.keys = list(dict.fromkeys(found))

    def __len__(self) -> int:
        return len(self.keys)

    def names(self) -> list[str]:
        return [key.name for key in self.keys]

    def signer(self, message: bytes, signature: bytes) -> str | None:
        """Return the name of the key that signed `message`, None if none of these did."""
        for key in self.keys:
            if is_signed(key.der, message, signature, sha256=not key.is_ed25519):
                return key.name
        return None
