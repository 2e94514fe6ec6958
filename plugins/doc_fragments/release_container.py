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
      cpuset:
        description: Numbers of the processors that the container is pinned to, such as V(0-1,3). Any if empty.
        type: str
        default: ""
  environment:
    description:
      - Environment variables of the container.
      - Ansible writes them to the host's log like all options, unless the task has C(ansible_no_target_syslog=true)
        among its variables.
    type: dict
    default: {}
  devices:
    description:
      - Devices of the host that are passed to the container.
      - Where only a group may use a device, the container's user gets that group.
      - A name of the Container Device Interface, such as V(nvidia.com/gpu=0), is one that the engine resolves.
    type: list
    elements: str
    default: []
  gpus:
    description: Numbers or ids of GPUs that the engine passes to the container, or V(all) alone.
    type: list
    elements: str
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

    MODELS = r"""
options:
  models:
    description: Models to serve.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: Name under which the model is served.
        type: str
        required: true
      version:
        description: Version, three parts.
        type: str
        required: true
      repository:
        description: Repository of the model in the registry that O(image) names.
        type: str
        required: true
      digest:
        description: Digest of the model's tar blob.
        type: str
        required: true
      size:
        description: Bytes of the blob.
        type: int
        required: true
      variant:
        description: Name of the model's variant, to say what changes.
        type: str
        default: default
      golden_cases:
        description: Number of golden cases that the model brings.
        type: int
        default: 0
      p50_ms:
        description: Objective. Milliseconds that the median of the candidate's latency may reach.
        type: float
      p95_ms:
        description: Objective. Milliseconds that the 95th percentile may reach.
        type: float
      p99_ms:
        description: Objective. Milliseconds that the 99th percentile may reach.
        type: float
      max_regression:
        description:
          - Objective. How many times the median latency of the release that serves the candidate may take, both asked
            in turns.
          - It has no effect where the release that serves cannot answer the same request.
        type: float
      concurrency:
        description:
          - Clients that ask at once in a short burst, in which no request may fail. V(0) for one client, and only if
            the golden cases are fewer than three requests.
        type: int
        default: 0
      protocol:
        description: Protocol through which the objective is measured.
        type: str
        choices: [grpc, rest]
        default: grpc
      protocols:
        description: Protocols through which clients reach the model.
        type: list
        elements: str
        choices: [rest, grpc, mqtt]
        default: [rest, grpc, mqtt]
      options:
        description:
          - How the model is served, overriding the file C(serving.json) that it may bring.
          - Keys are C(engine), C(batching), C(sequence), C(queue), C(deadline_seconds), C(isolated), C(memory_mb)
            and C(parameters), as the runtime documents them.
        type: dict
        default: {}
      shadow:
        description:
          - A share of the live requests to the release that serves is asked of the candidate as well, before it takes
            traffic; answers and latency are compared. No client waits for it or gets an answer of the candidate.
          - It needs the collection's runtime. Where too few requests come, the candidate passes.
        type: dict
        suboptions:
          share:
            description: Share of the live requests, above 0 and at most 1.
            type: float
            required: true
          seconds:
            description: Seconds in which requests are waited for.
            type: float
            default: 60
          requests:
            description: Requests after which it ends earlier. Fewer than 20 judge nothing.
            type: int
            default: 200
          max_different:
            description: Share of these that the candidate may answer differently, or fail.
            type: float
            default: 0.01
"""
