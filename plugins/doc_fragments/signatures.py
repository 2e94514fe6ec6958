# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation of the option that says whose signatures count (module_utils/_signature/lock.py)."""

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options:
  signatures:
    description:
      - Whose signatures count on this host, and the signatures of the lock.
      - What nobody trusted has signed is refused before it is fetched. No check depends on the clock.
    type: dict
    default: {}
    suboptions:
      mode:
        description: V(required) refuses what is not signed. V(ignored) asks for no signature.
        type: str
        choices: [required, ignored]
        default: required
      trusted_keys:
        description: Public keys in PEM, ECDSA P-256 or Ed25519. Several of them overlap while a key is replaced.
        type: list
        elements: str
        default: []
      lock_signature:
        description: Content of the lock's signature file, as M(edgeml.fleet.lock_signature) writes it.
        type: str
        default: ""
      signers_needed:
        description: How many different trusted keys have to have signed the lock.
        type: int
        default: 1
      accept_older_lock:
        description: Accept a lock with a lower serial than this host has accepted before.
        type: bool
        default: false
"""
