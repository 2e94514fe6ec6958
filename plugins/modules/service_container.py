#!/usr/bin/python
# Copyright (c) edgeml.fleet contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A container that serves at all times."""

from __future__ import annotations

DOCUMENTATION = r"""
module: service_container
short_description: Run a server in a container, and keep what serves until its successor answers
version_added: 0.2.0
author:
  - edgeml.fleet contributors (@edgeml)
description:
  - The container runs as user 65532 with a read-only root, without capabilities, and starts again by itself. It needs
    the engine's command line client on the host and no library.
  - It is replaced when the image, these options or the content of O(configuration) changed. If the successor does not
    answer, the container before it is started again and the task fails.
  - At an address that the host may get after its engine has started, a systemd unit named after the container starts it
    at boot as soon as it can.
options:
  name:
    description: Name of the container.
    type: str
    required: true
  image:
    description: The image, by digest or by a name that the engine knows.
    type: str
    required: true
  pull:
    description: Whether to pull an image that the engine does not have.
    type: bool
    default: false
  content:
    description:
      - Content of a site mirror, as M(edgeml.fleet.mirror_sync) makes it, from which an image by digest that the engine
        does not have is loaded. Nothing is pulled then.
    type: path
  publish:
    description: Ports to publish, C(ADDRESS:PORT:PORT_IN_THE_CONTAINER).
    type: list
    elements: str
    default: []
  volumes:
    description: Directories and files to mount, C(PATH:PATH_IN_THE_CONTAINER:ro).
    type: list
    elements: str
    default: []
  configuration:
    description: Files on the host, or directories of them, that the server reads when it starts.
    type: list
    elements: path
    default: []
  pids:
    description: Processes and threads that it may have at most.
    type: int
    default: 256
  memory_mb:
    description: MiB of memory that it may have at most; what it reads from the disk counts only while there is room.
    type: int
    default: 1024
  test:
    description: Arguments for the image that check O(configuration); a test that fails keeps what serves.
    type: list
    elements: str
    default: []
  endpoint:
    description: Where the server answers when it is ready, V(https://HOST:PORT) or V(http://HOST:PORT).
    type: str
    required: true
  path:
    description: What to ask for there.
    type: str
    default: /
  status:
    description: Status of HTTP that says that it is ready.
    type: int
    default: 200
  timeout:
    description: Seconds that it may take to be ready.
    type: float
    default: 30
attributes:
  check_mode:
    description: Says what would be done.
    support: full
  diff_mode:
    description: RV(plan) tells it.
    support: none
  idempotent:
    description: A container that runs and is made of the same is left alone.
    support: full
"""

EXAMPLES = r"""
- name: Serve files
  edgeml.fleet.service_container:
    name: edgeml-mirror
    image: store.example:5000/edgeml/mirror@sha256:8c2e
    pull: true
    publish: ["0.0.0.0:5443:5443"]
    volumes: ["/etc/edgeml/mirror/nginx.conf:/etc/edgeml/nginx.conf:ro", "/var/lib/edgeml/mirror:/srv/mirror:ro"]
    configuration: [/etc/edgeml/mirror]
    endpoint: https://127.0.0.1:5443
    path: /v2/
"""

RETURN = r"""
plan:
  description: What was done, or would be in check mode.
  returned: success
  type: dict
  contains:
    action:
      description: V(none), V(create), V(replace) or V(start).
      type: str
  sample: {"action": "none"}
what:
  description: What went wrong.
  returned: failure
  type: str
  sample: The container edgeml-mirror does not answer within 30 s
where:
  description: The endpoint, file or command concerned.
  returned: failure
  type: str
  sample: https://127.0.0.1:5443/v2/
seen:
  description: What was seen there.
  returned: failure
  type: str
  sample: "nginx: [emerg] cannot load certificate"
remedy:
  description: What to do next.
  returned: failure
  type: str
  sample: correct what its log names, then run again
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.edgeml.fleet.plugins.module_utils._host.boot_unit import start_at_boot, waits_for_address
from ansible_collections.edgeml.fleet.plugins.module_utils._host.engine import DockerEngine, NoEngine
from ansible_collections.edgeml.fleet.plugins.module_utils._host.service_container import Readiness, ServiceContainer
from ansible_collections.edgeml.fleet.plugins.module_utils._mirror.engine_image import load_image
from ansible_collections.edgeml.fleet.plugins.module_utils._module import command_runner, run

_WORDS = {"type": "list", "elements": "str", "default": []}
ARGUMENT_SPEC: dict[str, Any] = {
    "name": {"type": "str", "required": True},
    "image": {"type": "str", "required": True},
    "pull": {"type": "bool", "default": False},
    "content": {"type": "path"},
    "publish": _WORDS,
    "volumes": _WORDS,
    "configuration": {"type": "list", "elements": "path", "default": []},
    "pids": {"type": "int", "default": 256},
    "memory_mb": {"type": "int", "default": 1024},
    "test": _WORDS,
    "endpoint": {"type": "str", "required": True},
    "path": {"type": "str", "default": "/"},
    "status": {"type": "int", "default": 200},
    "timeout": {"type": "float", "default": 30.0},
}


def _fetch(options: Mapping[str, Any]) -> Callable[[DockerEngine], None] | None:
    if options["content"]:
        return lambda engine: load_image(Path(options["content"]), options["image"], engine)
    return (lambda engine: engine.pull(options["image"])) if options["pull"] else None


def serve(module: AnsibleModule) -> Mapping[str, Any]:
    """Have the container run."""
    options = module.params
    ready = Readiness(options["endpoint"], options["path"], options["status"], options["timeout"])
    names = ("name", "image", "publish", "volumes", "configuration", "pids", "memory_mb", "test")
    container = ServiceContainer(**{name: options[name] for name in names}, ready=ready)
    absent = module.check_mode and module.get_bin_path("docker") is None
    engine = NoEngine() if absent else DockerEngine(command_runner(module))
    result = container.apply(engine, _fetch(options), module.check_mode)
    waits = waits_for_address(options["publish"])
    arranged = start_at_boot(options["name"], waits, command_runner(module), module.check_mode)
    return {**result, "changed": result["changed"] or arranged}


def main() -> None:
    """Run the module."""
    run(ARGUMENT_SPEC, serve)


if __name__ == "__main__":
    main()
