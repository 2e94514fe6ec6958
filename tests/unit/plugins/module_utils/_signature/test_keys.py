# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Verification on hosts, held against the library cryptography, which signs."""

from __future__ import annotations

import base64
import ssl

import pytest
from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._signature import libcrypto
from ansible_collections.edgeml.fleet.plugins.module_utils._signature.keys import (
    ED25519_PREFIX,
    P256_PREFIX,
    PublicKey,
    TrustedKeys,
)
from ansible_collections.edgeml.fleet.plugins.plugin_utils.signing.keys import SigningKey, verifying
from ansible_collections.edgeml.fleet.tests.support.cosign import KeyPair, make_key
from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

KINDS = ("p256", "ed25519")
MESSAGE = b'{"serial":3}'
P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
ED25519_ORDER = 2**252 + 27742317777372353535851937790883648493


@pytest.fixture(params=KINDS)
def pair(request: pytest.FixtureRequest) -> KeyPair:
    return make_key(request.param)


def test_the_signer_is_found_among_the_trusted(pair: KeyPair) -> None:
    key = SigningKey.from_pem(pair.private)
    trusted = TrustedKeys([make_key("ed25519").public, pair.public, make_key("p256").public, pair.public])
    assert len(trusted) == 3
    assert trusted.signer(MESSAGE, key.sign(MESSAGE)) == key.name
    assert trusted.signer(b"", key.sign(b"")) == key.name
    large = bytes(1_000_000)
    assert trusted.signer(large, key.sign(large)) == key.name
    assert TrustedKeys([make_key().public]).signer(MESSAGE, key.sign(MESSAGE)) is None


def test_each_flipped_bit_is_seen(pair: KeyPair) -> None:
    """By the host as by the controller."""
    key, trusted = SigningKey.from_pem(pair.private), TrustedKeys([pair.public])
    signature = key.sign(MESSAGE)
    for place in range(len(signature) * 8):
        bad = bytearray(signature)
        bad[place // 8] ^= 1 << place % 8
        assert trusted.signer(MESSAGE, bytes(bad)) is None, place
        assert verifying(trusted.keys, MESSAGE, bytes(bad)) is None, place
    for place in range(len(MESSAGE) * 8):
        other = bytearray(MESSAGE)
        other[place // 8] ^= 1 << place % 8
        assert trusted.signer(bytes(other), signature) is None, place


@pytest.mark.parametrize("change", [lambda s: b"", lambda s: s[:-1], lambda s: s + b"\0", lambda s: bytes(len(s))])
def test_a_signature_of_another_length_is_none(pair: KeyPair, change: object) -> None:
    signature = SigningKey.from_pem(pair.private).sign(MESSAGE)
    assert callable(change)
    assert TrustedKeys([pair.public]).signer(MESSAGE, change(signature)) is None


def test_numbers_beyond_the_order_are_refused() -> None:
    """They would be other bytes of the same signature, or one of anything."""
    pair = make_key()
    r, s = decode_dss_signature(SigningKey.from_pem(pair.private).sign(MESSAGE))
    trusted = TrustedKeys([pair.public])
    for bad in ((0, s), (r, 0), (0, 0), (r + P256_ORDER, s), (r, s + P256_ORDER), (P256_ORDER, s), (1, 1)):
        assert trusted.signer(MESSAGE, encode_dss_signature(*bad)) is None, bad
    pair = make_key("ed25519")
    signature = SigningKey.from_pem(pair.private).sign(MESSAGE)
    scalar = int.from_bytes(signature[32:], "little") + ED25519_ORDER
    assert TrustedKeys([pair.public]).signer(MESSAGE, signature[:32] + scalar.to_bytes(32, "little")) is None


def test_keys_of_other_kinds_are_refused() -> None:
    larger = generate_private_key(SECP384R1()).public_key()
    pem = larger.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    for wrong in (pem, make_key().private, "", None, "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----"):
        with pytest.raises(FleetError, match=r"Not a public key .* at edgeml_trusted_keys\[0\]"):
            TrustedKeys([wrong])


def test_a_point_that_is_on_no_curve_is_refused() -> None:
    der = P256_PREFIX + bytes(63) + b"\1"
    text = base64.b64encode(der).decode()
    trusted = TrustedKeys([f"-----BEGIN PUBLIC KEY-----\n{text}\n-----END PUBLIC KEY-----\n"])
    with pytest.raises(FleetError, match="A trusted key cannot be used"):
        trusted.signer(MESSAGE, b"\x30\x06\x02\x01\x01\x02\x01\x01")
    assert PublicKey(ED25519_PREFIX + bytes(32)).pem.count("\n") == 3


def test_nothing_is_left_for_tls_to_stumble_over() -> None:
    """Python's TLS reads the same queue of errors as what failed here before."""
    trusted = TrustedKeys([make_key().public])
    for _ in range(100):
        assert trusted.signer(MESSAGE, b"no signature") is None
    client, server = ssl.MemoryBIO(), ssl.MemoryBIO()
    connection = ssl.create_default_context().wrap_bio(client, server, server_hostname="a")
    with pytest.raises(ssl.SSLWantReadError):
        connection.do_handshake()


def test_a_python_without_openssl_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(libcrypto.FUNCTIONS, "EVP_of_no_library", (None, []))
    libcrypto._library.cache_clear()
    with pytest.raises(FleetError, match="cannot verify signatures"):
        TrustedKeys([make_key().public]).signer(MESSAGE, b"")
    monkeypatch.undo()
    libcrypto._library.cache_clear()


def test_a_key_keeps_its_secret() -> None:
    for text in ("", "-----BEGIN PRIVATE KEY-----\nsecret\n-----END PRIVATE KEY-----", make_key().public):
        with pytest.raises(FleetError) as raised:
            SigningKey.from_pem(text)
        assert "secret" not in str(raised.value)
        assert "edgeml_signing_key" in str(raised.value)


def test_a_name_is_what_openssl_tells() -> None:
    """openssl pkey -pubin -outform DER | sha256sum."""
    pair = make_key()
    assert PublicKey.from_pem(pair.public, "").name == SigningKey.from_pem(pair.private).name
    assert PublicKey.from_pem(pair.public, "").pem == pair.public
