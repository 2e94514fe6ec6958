# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Debian's cosign, unpacked and not installed, and key pairs of both kinds."""

from __future__ import annotations

import base64
import json
import os
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible_collections.edgeml.fleet.plugins.module_utils._signature.lock import signature_line, signed_bytes
from ansible_collections.edgeml.fleet.plugins.plugin_utils.signing.keys import SigningKey
from ansible_collections.edgeml.fleet.tests.support.debian_suite import program_of
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

#: Debian 13 has cosign 2.5, which writes the older format; Debian unstable has cosign 3, which writes bundles.
SUITES = ("trixie", "sid")


@dataclass(frozen=True)
class KeyPair:
    """A key pair, both halves in PEM."""

    private: str
    public: str


def make_key(kind: str = "p256") -> KeyPair:
    """Return a new key pair: ``p256`` or ``ed25519``."""
    key = Ed25519PrivateKey.generate() if kind == "ed25519" else generate_private_key(SECP256R1())
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return KeyPair(private.decode(), public.decode())


def sign_lock(lock: Mapping[str, Any], keys: Iterable[KeyPair]) -> str:
    """Return the signature file of a lock that these keys have signed."""
    text = ""
    for key in keys:
        signing = SigningKey.from_pem(key.private)
        text += signature_line(signing.sign(signed_bytes(lock)), signing.name)
    return text


def cosign_program(suite: str) -> Path:
    """Return cosign of a suite of Debian; it is fetched once. It runs on this machine whatever that suite is."""
    return program_of(suite, "cosign", "usr/bin/cosign")


@dataclass
class Cosign:
    """cosign with a home directory of its own, which trusts one authority."""

    program: Path
    home: Path
    ca_file: str

    def run(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "HOME": str(self.home), "SSL_CERT_FILE": self.ca_file, "COSIGN_PASSWORD": ""}
        done = subprocess.run(
            [self.program, *arguments], cwd=self.home, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0 or not check, done.stdout + done.stderr
        return done

    def log_in(self, address: str, username: str, password: str) -> None:
        """Let cosign use a registry."""
        (self.home / ".docker").mkdir(exist_ok=True)
        login = base64.b64encode(f"{username}:{password}".encode()).decode()
        (self.home / ".docker/config.json").write_text(json.dumps({"auths": {address: {"auth": login}}}))

    def accepts(self, reference: str, public_key: str) -> bool:
        """Return whether cosign finds a valid signature of this key; its claims are about this content."""
        (self.home / "verify.pub").write_text(public_key)
        return (
            self.run("verify", "--key", "verify.pub", "--insecure-ignore-tlog=true", reference, check=False).returncode
            == 0
        )

    def make_key(self, kind: str) -> str:
        """Give cosign a new key pair to sign with, ``p256`` or ``ed25519``; return the public half in PEM."""
        if kind == "p256":  # cosign 2.5 makes such keys, and imports none
            self.run("generate-key-pair", "--output-key-prefix", "signing")
        else:
            (self.home / "imported.pem").write_text(make_key(kind).private)
            self.run("import-key-pair", "--key", "imported.pem", "--output-key-prefix", "signing")
        return (self.home / "signing.pub").read_text()

    def sign(self, reference: str) -> None:
        """Sign with cosign; no transparency log is asked."""
        options = ["--tlog-upload=false"]
        if "--signing-config" in self.run("sign", "--help").stdout:
            self.run("signing-config", "create", "--out", "none.json")
            options = ["--signing-config", "none.json"]
        self.run("sign", "--key", "signing.key", *options, "--yes", reference)
