# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation of the options that say how a release is run (ARGUMENT_SPEC in module_utils/_release/options.py)."""

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options:
  limits:
    description: What the container may use.
    type: dict
    default: {}
    suboptions:
      memory_mb:
        description: Memory in MiB. V(0) sets no limit.
        type: int
        default: 0
      cpus:
        description: Processors, such as V(1.5). V(0) sets no limit.
        type: float
        default: 0
      pids:
        description: Processes and threads.
        type: int
        default: 256
      shared_memory_mb:
        description: Size of C(/dev/shm) in MiB. V(0) leaves the engine's default.
        type: int
        default: 0
  environment:
    description: Environment variables of the container.
    type: dict
    default: {}
  devices:
    description:
      - Devices of the host that are passed to the container.
      - Where only a group may use a device, the container's user gets that group.
    type: list
    elements: path
    default: []
  server:
    description:
      - Another server that speaks the Open Inference Protocol, instead of the collection's runtime.
      - Its ports are published at the addresses in C(listen) of O(configuration), which has no other key then.
      - The candidate runs on a bridge that leads nowhere but to the host.
    type: dict
    suboptions:
      command:
        description: Arguments of the container, the image's own if empty.
        type: list
        elements: str
        default: []
      environment:
        description: Environment variables of the server.
        type: dict
        default: {}
      rest_port:
        description: Port of REST in the container. One of it and O(server.grpc_port) is needed.
        type: int
      grpc_port:
        description: Port of gRPC in the container.
        type: int
      metrics_port:
        description: Port of the metrics in the container.
        type: int
      models_directory:
        description: Directory in the container where each model is mounted under its name.
        type: str
        default: /mnt/models
      user:
        description: Numeric user of the container, C(uid) or C(uid:gid).
        type: str
        default: "65532:65532"
"""
