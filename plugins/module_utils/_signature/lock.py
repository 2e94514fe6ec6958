# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The signature of a lock, by which everything that the lock names by digest is trusted.

A signature file has one line for each signature: its bytes in base64, and the name of the key for people to read.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ansible_collections.edgeml.fleet.plugins.module_utils._canonical import canonical_json
from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._signature.keys import Signer, TrustedKeys

# Argument specification of the option that says whose signatures count (documentation fragment
# edgeml.fleet.signatures).
SIGNATURES_ARGUMENT: dict[str, Any] = {
    "type": "dict",
    "default": {},
    "options": {
        "mode": {"type": "str", "choices": ["required", "ignored"], "default": "required"},
        "trusted_keys": {"type": "list", "elements": "str", "default": [], "no_log": False},
        "lock_signature": {"type": "str", "default": ""},
        "signers_needed": {"type": "int", "default": 1},
        "accept_older_lock": {"type": "bool", "default": False},
    },
}
UNSIGNED_REMEDY = "or set edgeml_signatures: ignored to run what nobody signed"


@dataclass(frozen=True)
class Trust:
    """Whose signatures count on a host, and what they are over. Without `keys`, none is asked for."""

    keys: TrustedKeys | None
    lock_signature: str = ""
    signers_needed: int = 1
    accept_older_lock: bool = False

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Trust:
        """Return what a module's option with SIGNATURES_ARGUMENT says."""
        return cls(
            TrustedKeys(options["trusted_keys"]) if options["mode"] == "required" else None,
            options["lock_signature"],
            options["signers_needed"],
            options["accept_older_lock"],
        )

    def check(self, lock: Mapping[str, Any]) -> None:
        """Raise FleetError unless enough trusted keys have signed the lock, or no signature is asked for."""
        if self.keys is not None:
            check_lock(lock, self.lock_signature, self.keys.names(), self.keys.signer, self.signers_needed)


IGNORED = Trust(None)


def signed_bytes(lock: Mapping[str, Any]) -> bytes:
    """Return the bytes that a signature of a lock is over: its content, however the file is laid out."""
    return canonical_json(lock)


def signature_lines(text: str) -> list[tuple[bytes, str]]:
    """Return each signature of a signature file and the name of its key; empty where the line has none."""
    found = []
    for line in text.splitlines():
        encoded, _separator, name = line.strip().partition(" ")
        with contextlib.suppress(binascii.Error, ValueError):
            signature = base64.b64decode(encoded, validate=True)
            if signature:
                found.append((signature, name.strip()))
    return found


def signature_line(signature: bytes, key: str) -> str:
    """Return a line of a signature file."""
    return f"{base64.b64encode(signature).decode()} {key}\n"


def check_lock(lock: Mapping[str, Any], text: str, trusted: list[str], signer: Signer, needed: int) -> list[str]:
    """Return the names of the trusted keys that signed a lock; raise FleetError if fewer than `needed` did.

    Parameters
    ----------
    text : str
        Content of the signature file.
    trusted : list of str
        Names of the trusted keys.
    signer : Signer
        Verifies with the trusted keys.
    """
    if not trusted:
        raise FleetError(
            "No key is trusted to sign the lock",
            where="edgeml_trusted_keys",
            seen="an empty list",
            remedy=f"list the public keys (PEM) of those who sign, {UNSIGNED_REMEDY}",
        )
    if not 1 <= needed <= len(trusted):
        raise FleetError(
            "More signers are needed than keys are trusted" if needed > 0 else "No signer would be needed",
            where="edgeml_lock_signers_needed",
            seen=f"{needed}, and {len(trusted)} trusted keys",
            remedy=f"give a number from 1 to {len(trusted)}, or trust more keys",
        )
    lines = signature_lines(text)
    if not lines:
        raise FleetError(
            "The lock is not signed",
            where=f"the lock with serial {lock.get('serial')}",
            seen="no signature",
            remedy=f"sign it with the playbook edgeml.fleet.sign or publish again, {UNSIGNED_REMEDY}",
        )
    message = signed_bytes(lock)
    found = {name for signature, _name in lines for name in [signer(message, signature)] if name}
    if not found:
        claimed = sorted({name for _signature, name in lines if name})
        if set(claimed) & set(trusted):
            raise FleetError(
                "The lock was altered after it was signed",
                where=f"the lock with serial {lock.get('serial')}",
                seen=f"a signature of {', '.join(sorted(set(claimed) & set(trusted)))} over another content",
                remedy="restore lock and signature from version control, or publish again; nobody edits the lock",
            )
        raise FleetError(
            "The lock is signed with a key that is not trusted",
            where=f"the lock with serial {lock.get('serial')}",
            seen=f"signed by {', '.join(claimed) or 'an unnamed key'}, trusted are {', '.join(trusted)}",
            remedy="publish with a trusted key, or add the signer's public key to edgeml_trusted_keys",
        )
    if len(found) < needed:
        raise FleetError(
            "Too few signers have signed the lock",
            where=f"the lock with serial {lock.get('serial')}",
            seen=f"{len(found)} of {needed}: {', '.join(sorted(found))}",
            remedy="let another trusted key sign it with the playbook edgeml.fleet.sign",
        )
    return sorted(found)
