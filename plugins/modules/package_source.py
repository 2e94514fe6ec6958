#!/usr/bin/python
# Copyright (c) edgeml.fleet contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Make a host get packages from its site's mirror, or from its own sources."""

from __future__ import annotations

DOCUMENTATION = r"""
module: package_source
short_description: Make a host get packages from its site's mirror, or from its own sources
version_added: 0.2.0
author:
  - edgeml.fleet contributors (@edgeml)
description:
  - Writes C(/etc/apt/sources.list.d/edgeml.sources), with the key that signs, and C(/etc/apt/apt.conf.d/90edgeml), with
    the mirror's certificate authority. Other sources of the host are left as they are; the role
    edgeml.fleet.system_packages asks this one alone while it is there.
requirements:
  - Debian on the host, unless O(state=absent)
options:
  state:
    description: Whether packages come from the mirror.
    type: str
    choices: [present, absent]
    default: present
  registry:
    description: Host name and port of the mirror. Required unless O(state=absent).
    type: str
  directory:
    description: The mirror's own repositories, for the host that is the mirror. They are used if they are there.
    type: path
    default: /var/lib/edgeml/mirror/packages
  key:
    description: Armored OpenPGP key by which apt verifies the packages. Required unless O(state=absent).
    type: str
  ca_file:
    description: Certificate authority of the mirror, a file on the host. Required unless O(state=absent).
    type: path
attributes:
  check_mode:
    description: Says whether anything would change.
    support: full
  diff_mode:
    description: Returns nothing but whether anything changed.
    support: none
  idempotent:
    description: Files that say it already are left alone.
    support: full
"""

EXAMPLES = r"""
- name: Get packages from the site's mirror
  edgeml.fleet.package_source:
    registry: registry.edgeml.internal:5443
    key: "{{ lookup('ansible.builtin.file', 'packages.key.pub') }}"
    ca_file: /etc/docker/certs.d/registry.edgeml.internal:5443/ca.crt
"""

RETURN = r"""
what:
  description: What went wrong.
  returned: failure
  type: str
  sample: A bundle brings packages for Debian only, and this host is another system
where:
  description: The file or variable that it concerns.
  returned: failure
  type: str
  sample: edgeml_package_source
seen:
  description: What was seen there.
  returned: failure
  type: str
  sample: Fedora Linux 43
remedy:
  description: What to do next.
  returned: failure
  type: str
  sample: set edgeml_package_source to host for it
"""

from collections.abc import Mapping
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.edgeml.fleet.plugins.module_utils._host.package_source import PackageSource, apply
from ansible_collections.edgeml.fleet.plugins.module_utils._module import run

ARGUMENT_SPEC: dict[str, Any] = {
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    "registry": {"type": "str"},
    "directory": {"type": "path", "default": "/var/lib/edgeml/mirror/packages"},
    "key": {"type": "str", "no_log": False},
    "ca_file": {"type": "path"},
}


def write(module: AnsibleModule) -> Mapping[str, Any]:
    """Have the source, or not."""
    options = module.params
    names = ("registry", "directory", "key", "ca_file")
    source = PackageSource(**{name: options[name] for name in names}) if options["state"] == "present" else None
    return {"changed": apply(source, write=not module.check_mode)}


def main() -> None:
    """Run the module."""
    run(ARGUMENT_SPEC, write, required_if=[("state", "present", ["registry", "key", "ca_file"])])


if __name__ == "__main__":
    main()
