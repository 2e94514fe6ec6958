# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Private keys that sign, on the controller only, with the library cryptography."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from typing import Any

from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._signature.keys import PublicKey, key_name
from ansible_collections.edgeml.fleet.plugins.plugin_utils.libraries import missing_library

try:
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, SECP256R1, EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        PublicFormat,
        load_der_public_key,
        load_pem_private_key,
    )
except ImportError as error:
    _without_cryptography: ImportError | None = error
else:
    _without_cryptography = None


class SigningKey:
    """A private key, ECDSA P-256 or Ed25519."""

    def __init__(self, private: Any) -> None:
        self._private = private
        self.der: bytes = private.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        self.name = key_name(self.der)

    @classmethod
    def from_pem(cls, text: str, passphrase: str = "") -> SigningKey:
        """Return the key in a PEM text (PKCS #8, or what OpenSSL wrote before); never tells any of it in an error."""
        if _without_cryptography:
            raise missing_library(_without_cryptography)
        try:
            private = load_pem_private_key(text.encode(), passphrase.encode() or None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            reason = "wrong or missing passphrase" if "ENCRYPTED" in text or passphrase else "not a private key in PEM"
            raise _unusable(reason) from error
        if isinstance(private, Ed25519PrivateKey) or (
            isinstance(private, EllipticCurvePrivateKey) and isinstance(private.curve, SECP256R1)
        ):
            return cls(private)
        raise _unusable(f"a key of another kind ({type(private).__name__})")

    @property
    def public_pem(self) -> str:
        return PublicKey(self.der).pem

    @property
    def hint(self) -> str:
        """How Sigstore bundles name the key."""
        return base64.b64encode(hashlib.sha256(self.der).digest()).decode()

    def sign(self, message: bytes) -> bytes:
        """Return the signature of a message: Ed25519, or ECDSA over its SHA-256 digest in DER."""
        if isinstance(self._private, Ed25519PrivateKey):
            return self._private.sign(message)
        signature: bytes = self._private.sign(message, ECDSA(SHA256()))
        return signature

    def signer(self, message: bytes, signature: bytes) -> str | None:
        """Return this key's name if it made the signature, else None."""
        return verifying([PublicKey(self.der)], message, signature)


def verifying(keys: Sequence[PublicKey], message: bytes, signature: bytes) -> str | None:
    """Return the name of the key that signed `message`, None if none of these did."""
    if _without_cryptography:
        raise missing_library(_without_cryptography)
    for key in keys:
        public: Any = load_der_public_key(key.der)
        try:
            if key.is_ed25519:
                public.verify(signature, message)
            else:
                public.verify(signature, message, ECDSA(SHA256()))
        except InvalidSignature:
            continue
        return key.name
    return None


def _unusable(seen: str) -> FleetError:
    return FleetError(
        "The signing key cannot be used",
        where="edgeml_signing_key",
        seen=seen,
        remedy="give the PEM text of an ECDSA P-256 or Ed25519 private key, and edgeml_signing_key_passphrase if it is "
        "encrypted; openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 makes one",
    )
