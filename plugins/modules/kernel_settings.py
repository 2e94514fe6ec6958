#!/usr/bin/python
# Copyright (c) edgeml.fleet contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Kernel modules and kernel parameters that a host's models need."""

from __future__ import annotations

DOCUMENTATION = r"""
module: kernel_settings
short_description: Load kernel modules and set kernel parameters, and put back what is no longer needed
version_added: 0.1.0
author:
  - edgeml.fleet contributors (@edgeml)
description:
  - Loads modules and sets parameters now, and at every start by C(/etc/modules-load.d/edgeml.conf) and
    C(/etc/sysctl.d/90-edgeml.conf), which hold nothing else.
  - A parameter that is no longer named gets the value back that it had before, a module that the module loaded is
    unloaded unless something else uses it. Empty lists put everything back.
options:
  modules:
    description: Names of kernel modules.
    type: list
    elements: str
    default: []
  sysctls:
    description: Kernel parameters and their values.
    type: dict
    default: {}
  optional_sysctls:
    description: The same, but skipped where the kernel lacks them or C(/proc/sys) is read-only, as in a container.
    type: dict
    default: {}
attributes:
  check_mode:
    description: Says what would change.
    support: full
  diff_mode:
    description: Shows both files.
    support: full
  idempotent:
    description: Nothing is done if files and kernel are as asked for.
    support: full
"""

EXAMPLES = r"""
- name: Have a virtual camera, and less swapping
  edgeml.fleet.kernel_settings:
    modules: [v4l2loopback]
    sysctls: {vm.swappiness: 10}

- name: Put everything back
  edgeml.fleet.kernel_settings:
"""

RETURN = r"""
plan:
  description: What changed, or would in check mode.
  returned: success
  type: list
  elements: dict
  contains:
    kind:
      description: C(module), C(sysctl), or C(file) if only a file that says what is set at the start differs.
      type: str
    name:
      description: Name of the module or parameter, path of the file.
      type: str
    before:
      description: The parameter's value, C(loaded) or C(not loaded); null for a parameter that its module brings.
      type: str
    after:
      description: The same afterwards.
      type: str
  sample: [{"kind": "sysctl", "name": "vm.swappiness", "before": "60", "after": "10"}]
skipped:
  description: Optional parameters that cannot be set on this host, and why.
  returned: success
  type: list
  elements: str
  sample: ["net.ipv4.tcp_migrate_req: this kernel lacks it, or it cannot be changed here"]
what:
  description: What went wrong.
  returned: failure
  type: str
  sample: The kernel module v4l2loopback cannot be loaded
where:
  description: The file or setting concerned.
  returned: failure
  type: str
  sample: requires.kernel_modules
seen:
  description: What was seen there.
  returned: failure
  type: str
  sample: "modprobe: FATAL: Module v4l2loopback not found"
remedy:
  description: What to do next.
  returned: failure
  type: str
  sample: install the package that brings it
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.edgeml.fleet.plugins.module_utils._host.kernel import KernelSettings
from ansible_collections.edgeml.fleet.plugins.module_utils._module import run

ARGUMENT_SPEC: dict[str, Any] = {
    "modules": {"type": "list", "elements": "str", "default": []},
    "sysctls": {"type": "dict", "default": {}},
    "optional_sysctls": {"type": "dict", "default": {}},
}


def apply(module: AnsibleModule) -> dict[str, Any]:
    """Make the options the host's settings."""
    options = module.params
    texts = [{name: str(value) for name, value in options[key].items()} for key in ("sysctls", "optional_sysctls")]
    return KernelSettings(module.run_command).apply(options["modules"], *texts, check_mode=module.check_mode)


def main() -> None:
    """Run the module."""
    run(ARGUMENT_SPEC, apply)


if __name__ == "__main__":
    main()
