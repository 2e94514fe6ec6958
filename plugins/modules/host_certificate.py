#!/usr/bin/python
# Copyright (c) edgeml.fleet contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation of the action host_certificate, all of which runs on the controller."""

from __future__ import annotations

DOCUMENTATION = r"""
module: host_certificate
short_description: Make a host's certificate, and the private authority that signs it
version_added: 0.1.0
author:
  - edgeml.fleet contributors (@edgeml)
description:
  - Has C(ca.key) and C(ca.crt) in a directory, and for the host C(HOST.key), C(HOST.crt), and C(HOST.names), which says
    what the certificate was made for. Keys are ECDSA P-256.
  - A certificate that was made for other names or by another authority is made anew, with the host's key.
  - Runs on the controller, in Ansible's own process. No host is contacted.
requirements:
  - The Python library cryptography on the controller.
options:
  directory:
    description: Directory on the controller. It is made for its owner only.
    type: path
    required: true
  authority:
    description: Common name of an authority that is made.
    type: str
    required: true
  host:
    description: Name of the host's files.
    type: str
    required: true
  server_name:
    description: Common name of the host's certificate, cut to 64 characters.
    type: str
    required: true
  names:
    description: Names and addresses of the host, each as C(DNS:name) or C(IP:address).
    type: list
    elements: str
    required: true
  not_before:
    description: Start of validity in UTC, as in C(20200101000000Z).
    type: str
    required: true
  not_after:
    description: End of validity in UTC.
    type: str
    required: true
  client:
    description:
      - Whether the host may present its certificate to others (C(clientAuth)). One that it may not present is made anew
        then; one that it may stays.
    type: bool
    default: false
attributes:
  check_mode:
    description: Says what would be made.
    support: full
  diff_mode:
    description: Certificates are not shown.
    support: none
  idempotent:
    description: A certificate that was made for these names by this authority stays.
    support: full
"""

EXAMPLES = r"""
- name: Make the certificate of the store
  edgeml.fleet.host_certificate:
    directory: ../pki
    authority: Example Ltd, edge devices
    host: store
    server_name: store.edgeml.internal
    names: [DNS:store.edgeml.internal, IP:192.0.2.1]
    not_before: 20200101000000Z
    not_after: 20591231235959Z
"""

RETURN = r"""
what:
  description: What went wrong.
  returned: failure
  type: str
  sample: A private key cannot be used
where:
  description: The variable or file that it concerns.
  returned: failure
  type: str
  sample: pki/ca.key
seen:
  description: What was seen there.
  returned: failure
  type: str
  sample: no unencrypted private key in PEM
remedy:
  description: What to do.
  returned: failure
  type: str
  sample: put one there
"""
