#!/usr/bin/python
# Copyright (c) edgeml.fleet contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation of the action lock_signature, all of which runs on the controller."""

from __future__ import annotations

DOCUMENTATION = r"""
module: lock_signature
short_description: Sign a lock and what it names
version_added: 0.1.0
author:
  - edgeml.fleet contributors (@edgeml)
description:
  - Signs the content of C(fleet.lock.yml), however the file is laid out, into a file beside it. The file has one line
    for each signer.
  - With O(registry), signs each manifest that the lock names there as well (indexes, their children, models), in both
    of cosign's formats, the tag C(sha256-HEX.sig) and the Sigstore bundle 0.3 as an OCI 1.1 referrer. C(cosign verify
    --key) accepts them.
  - Runs on the controller, in Ansible's own process. The key is written nowhere.
extends_documentation_fragment:
  - edgeml.fleet.registry
requirements:
  - The Python library cryptography on the controller.
options:
  lock:
    description: Content of the lock.
    type: dict
    required: true
  path:
    description: The signature file. Signatures of other trusted keys over this content stay in it, all others go.
    type: path
    required: true
  key:
    description: Private key in PEM, ECDSA P-256 or Ed25519.
    type: str
    required: true
  passphrase:
    description: Passphrase of the key, empty if it is not encrypted.
    type: str
    default: ""
  trusted_keys:
    description: Public keys in PEM whose signatures over this content are kept.
    type: list
    elements: str
    default: []
  registry:
    description: The registry that holds what the lock names. Without it, only the lock is signed.
attributes:
  check_mode:
    description: Says what would be signed. A registry that cannot be reached is a warning then.
    support: full
  diff_mode:
    description: Shows the signature file.
    support: full
  idempotent:
    description: What this key has signed is not signed again.
    support: full
"""

EXAMPLES = r"""
- name: Sign what was published
  edgeml.fleet.lock_signature:
    lock: "{{ lookup('ansible.builtin.file', 'fleet.lock.yml') | from_yaml }}"
    path: fleet.lock.yml.sig
    key: "{{ lookup('ansible.builtin.env', 'EDGEML_SIGNING_KEY') }}"
    registry:
      address: store.edgeml.internal:5000
      username: publisher
      password: "{{ store_password }}"
      ca_file: ca.crt
"""

RETURN = r"""
key:
  description: Name of the key, the first digits of the SHA-256 digest of its public half in DER.
  returned: success
  type: str
  sample: 5f70bf18a086007a
public_key:
  description: Its public half in PEM, for edgeml_trusted_keys.
  returned: success
  type: str
  sample: "-----BEGIN PUBLIC KEY-----\n..."
signers:
  description: Names of the keys that have signed the lock.
  returned: success
  type: list
  elements: str
  sample: [5f70bf18a086007a]
signed:
  description: Manifests that lacked a signature of this key.
  returned: success
  type: list
  elements: str
  sample: ["edgeml/runtime@sha256:5f70bf18a086007a"]
what:
  description: What went wrong.
  returned: failure
  type: str
  sample: The signing key cannot be used
where:
  description: The variable or address that it concerns.
  returned: failure
  type: str
  sample: edgeml_signing_key
seen:
  description: What was seen there.
  returned: failure
  type: str
  sample: wrong or missing passphrase
remedy:
  description: What to do.
  returned: failure
  type: str
  sample: give the PEM text of an ECDSA P-256 or Ed25519 private key
"""
