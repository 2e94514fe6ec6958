#!/usr/bin/python
# Copyright (c) edgeml.fleet contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The Docker Engine that a host has: its configuration, and that it runs."""

from __future__ import annotations

DOCUMENTATION = r"""
module: engine_service
short_description: Configure and start the Docker Engine that a host has
version_added: 0.2.0
author:
  - edgeml.fleet contributors (@edgeml)
description:
  - Takes an engine as it is, whoever installed it, and starts it with systemd or without.
  - O(configuration) is merged into C(/etc/docker/daemon.json). Keys of others stay. A key that the module wrote and
    that is not asked for any more is taken back. Keys that the engine was given as flags are left out, and
    C(live-restore) in a swarm, since it would not start with them.
  - A configuration is checked by C(dockerd --validate) where the engine has it. If the engine does not come up, the
    file is put back, the engine started again, and the task fails.
options:
  state:
    description: V(started) or V(stopped).
    type: str
    choices: [started, stopped]
    default: started
  configuration:
    description: Keys for the engine's configuration.
    type: dict
    default: {}
  timeout:
    description: Seconds that the engine may take to answer.
    type: float
    default: 60
attributes:
  check_mode:
    description: Says what would be done.
    support: full
  diff_mode:
    description: Shows the configuration.
    support: full
  idempotent:
    description: An engine that runs with this configuration is left alone.
    support: full
"""

EXAMPLES = r"""
- name: Have the engine run, with small logs
  edgeml.fleet.engine_service:
    configuration: {log-driver: local}
"""

RETURN = r"""
present:
  description: Whether the host has an engine. Nothing is done where it has none.
  returned: when started
  type: bool
  sample: true
packages:
  description: Packages of the host's distribution that bring an engine; empty where none are known.
  returned: when started
  type: list
  elements: str
  sample: [docker.io, iptables, ca-certificates]
plan:
  description: What was done, or would be in check mode.
  returned: when started
  type: dict
  contains:
    action:
      description: V(none), V(install) (by whoever can), V(start) or V(restart).
      type: str
  sample: {"action": "none"}
what:
  description: What went wrong.
  returned: failure
  type: str
  sample: The engine does not come up with its new configuration, which was taken back
where:
  description: The file, variable or command concerned.
  returned: failure
  type: str
  sample: docker_engine_configuration, merged into /etc/docker/daemon.json
seen:
  description: What was seen there.
  returned: failure
  type: str
  sample: "unknown log opt 'max-file' for journald log driver"
remedy:
  description: What to do next.
  returned: failure
  type: str
  sample: correct what its log names; the engine runs again as before
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.edgeml.fleet.plugins.module_utils._host.engine_service import EngineService
from ansible_collections.edgeml.fleet.plugins.module_utils._module import command_runner, run

ARGUMENT_SPEC: dict[str, Any] = {
    "state": {"type": "str", "choices": ["started", "stopped"], "default": "started"},
    "configuration": {"type": "dict", "default": {}},
    "timeout": {"type": "float", "default": 60.0},
}


def serve(module: AnsibleModule) -> dict[str, Any]:
    """Have the engine as the options say."""
    engine = EngineService(command_runner(module))
    if module.params["state"] == "started":
        return engine.apply(module.params["configuration"], module.params["timeout"], module.check_mode)
    running = engine.is_running()
    if running and not module.check_mode:
        engine.stop()
    return {"changed": running}


def main() -> None:
    """Run the module."""
    run(ARGUMENT_SPEC, serve)


if __name__ == "__main__":
    main()
