#!/usr/bin/python
# Copyright (c) edgeml.fleet contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Take the Debian packages of a bundle over to a site's mirror."""

from __future__ import annotations

DOCUMENTATION = r"""
module: package_repository
short_description: Take the Debian packages of a bundle over to a site's mirror
version_added: 0.2.0
author:
  - edgeml.fleet contributors (@edgeml)
description:
  - Copies the apt repositories that M(edgeml.fleet.content_bundle) wrote. apt verifies the signature of each first, and
    each package is verified by the digest in the signed index.
  - Packages come first and the index after them. What neither the new nor the old index names is removed last.
  - Does nothing where the bundle brings no packages.
requirements:
  - apt on the host
options:
  bundle:
    description: The bundle's directory C(packages), on the host.
    type: path
    required: true
  path:
    description: Directory that holds a repository for each of Debian's suites.
    type: path
    required: true
  key:
    description: Armored OpenPGP key by which the repositories are verified.
    type: str
    required: true
attributes:
  check_mode:
    description: Says whether anything would change.
    support: full
  diff_mode:
    description: Returns nothing but whether anything changed.
    support: none
  idempotent:
    description: Repositories that are whole are left alone.
    support: full
"""

EXAMPLES = r"""
- name: Take the packages from the stick
  edgeml.fleet.package_repository:
    bundle: /media/stick/bundle/packages
    path: /var/lib/edgeml/mirror/packages
    key: "{{ lookup('ansible.builtin.file', 'packages.key.pub') }}"
"""

RETURN = r"""
what:
  description: What went wrong.
  returned: failure
  type: str
  sample: apt does not trust the packages of the bundle
where:
  description: The file or variable that it concerns.
  returned: failure
  type: str
  sample: /media/stick/bundle/packages/bookworm/InRelease
seen:
  description: What was seen there.
  returned: failure
  type: str
  sample: the signature is not valid
remedy:
  description: What to do next.
  returned: failure
  type: str
  sample: export the bundle again with the playbook edgeml.fleet.bundle_export
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.edgeml.fleet.plugins.module_utils._mirror.package_import import import_packages
from ansible_collections.edgeml.fleet.plugins.module_utils._module import command_runner, run

ARGUMENT_SPEC: dict[str, Any] = {
    "bundle": {"type": "path", "required": True},
    "path": {"type": "path", "required": True},
    "key": {"type": "str", "required": True, "no_log": False},
}


def take(module: AnsibleModule) -> Mapping[str, Any]:
    """Bring the repositories to what the bundle holds."""
    options = module.params
    bundle, root = Path(options["bundle"]), Path(options["path"])
    write = not module.check_mode
    return {"changed": import_packages(bundle, root, options["key"], command_runner(module), write=write)}


def main() -> None:
    """Run the module."""
    run(ARGUMENT_SPEC, take)


if __name__ == "__main__":
    main()
