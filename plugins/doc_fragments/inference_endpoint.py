# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Options of every module that talks to an inference server; declared in module_utils/_inference/connect.py."""

from __future__ import annotations


class ModuleDocFragment:
    """Documentation fragment C(edgeml.fleet.inference_endpoint)."""

    DOCUMENTATION = r"""
options:
  endpoint:
    description:
      - Address of a server of the Open Inference Protocol v2.
      - REST is V(http://HOST:PORT), V(https://HOST:PORT) or, over a unix socket, V(http+unix:///PATH).
      - gRPC is V(grpc://HOST:PORT) in clear text, V(grpcs://HOST:PORT) or, over a unix socket, V(grpc+unix:///PATH).
      - Proxies of the environment are not used.
    type: str
    required: true
  ca_file:
    description:
      - PEM file with the certificate authorities to trust, for V(https) and V(grpcs).
      - Without it those of the system are trusted.
    type: path
  client_certificate:
    description: PEM file with the certificate to identify this client with, for V(https) and V(grpcs).
    type: path
  client_key:
    description: PEM file with the unencrypted private key of O(client_certificate).
    type: path
  server_name:
    description: Name that the server's certificate must carry, where it is not the host of O(endpoint).
    type: str
  bearer_token:
    description: Token to send with each request. In clear text it is sent to loopback addresses and unix sockets only.
    type: str
  timeout:
    description: Seconds that one request and its answer may take.
    type: float
    default: 10.0
requirements:
  - python >= 3.8
notes:
  - The module runs where the play runs it. O(ca_file), O(client_certificate), O(client_key) and the files of O(models)
    are read on that host.
"""
