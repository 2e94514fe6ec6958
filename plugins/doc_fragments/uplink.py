# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation of how mirror_sync uses a site's uplink (Course and LIMITS_ARGUMENT in module_utils/_mirror)."""

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options:
  fallbacks:
    description:
      - Where the same content can be read if the store fails, in this order. The mirror of a neighbour site will do,
        for what both sites need.
      - What is read there is verified like what comes from the store.
    type: list
    elements: dict
    default: []
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
  limits:
    description:
      - What the uplink may be used for. Manifests and signatures, some kB each, are read whatever the limits say.
      - The account of the day's bytes is kept in the tree.
    type: dict
    default: {}
    suboptions:
      mbit:
        description: Mbit/s (10^6 bits) over all transfers; 0 for no limit.
        type: float
        default: 0
      hours:
        description:
          - Spans of the day, such as C(22:00-05:00), in the host's local time; empty for the whole day.
          - Outside of them nothing is moved.
        type: list
        elements: str
        default: []
      bytes_per_day:
        description: Bytes that a day may move, 0 for any number. What a day leaves may be moved in the next seven.
        type: int
        default: 0
      urgent:
        description: Whether this content may pass all limits.
        type: bool
        default: false
  parallel:
    description: How many blobs are fetched at a time.
    type: int
    default: 4
  patience:
    description: Seconds to go on trying while no source answers, for an uplink that comes and goes.
    type: int
    default: 0
"""
