# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation of the option that names a registry (REGISTRY_ARGUMENT in module_utils/_oci/registry.py)."""

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options:
  registry:
    description: The registry to publish to.
    type: dict
    required: true
    suboptions:
      address:
        description: Host, or host and port, without scheme and path. TLS is always used.
        type: str
        required: true
      username:
        description: User name. Without it the registry is used anonymously.
        type: str
      password:
        description: Password of the user.
        type: str
      ca_file:
        description: PEM file of the certificate authorities to trust, where the module runs. By default the system's.
        type: path
      ca_certificate:
        description: Text of the PEM file, instead of C(ca_file), for a host that does not have the file yet.
        type: str
      ip_address:
        description: Where to connect to, if no name service knows the name in C(address).
        type: str
      client_certificate:
        description: Text of the PEM file of a certificate to present, where the registry asks its clients for one.
        type: str
      client_key:
        description: Text of the PEM file of its key.
        type: str
"""

    STORE = r"""
options:
  store:
    description: The registry that is the model store.
    type: dict
    required: true
    suboptions:
      address:
        description: Host, or host and port, without scheme and path. TLS is always used.
        type: str
        required: true
      username:
        description: User name. Without it the registry is used anonymously.
        type: str
      password:
        description: Password of the user.
        type: str
      ca_file:
        description: PEM file of the certificate authorities to trust, where the module runs. By default the system's.
        type: path
      ca_certificate:
        description: Text of the PEM file, instead of C(ca_file), for a host that does not have the file yet.
        type: str
      ip_address:
        description: Where to connect to, if no name service knows the name in C(address).
        type: str
      client_certificate:
        description: Text of the PEM file of a certificate to present, where the registry asks its clients for one.
        type: str
      client_key:
        description: Text of the PEM file of its key.
        type: str
"""

    # ansible-test reads literals only.
    OPTIONAL_STORE = r"""
options:
  store:
    description: The registry that is the model store.
    type: dict
    suboptions:
      address:
        description: Host, or host and port, without scheme and path. TLS is always used.
        type: str
        required: true
      username:
        description: User name. Without it the registry is used anonymously.
        type: str
      password:
        description: Password of the user.
        type: str
      ca_file:
        description: PEM file of the certificate authorities to trust, where the module runs. By default the system's.
        type: path
      ca_certificate:
        description: Text of the PEM file, instead of C(ca_file), for a host that does not have the file yet.
        type: str
      ip_address:
        description: Where to connect to, if no name service knows the name in C(address).
        type: str
      client_certificate:
        description: Text of the PEM file of a certificate to present, where the registry asks its clients for one.
        type: str
      client_key:
        description: Text of the PEM file of its key.
        type: str
"""
