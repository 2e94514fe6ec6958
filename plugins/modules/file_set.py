#!/usr/bin/python
# Copyright (c) edgeml.fleet contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A directory with a few small files, in one call."""

from __future__ import annotations

DOCUMENTATION = r"""
module: file_set
short_description: Have a directory with a few small files, such as certificates and tokens
version_added: 0.1.0
author:
  - edgeml.fleet contributors (@edgeml)
description:
  - Makes the directory and all files in one call, where M(ansible.builtin.copy) takes two for each file.
  - Other files in the directory stay. Each file is replaced in one step that is safe against a power cut.
  - Contents never show, neither in a diff.
options:
  path:
    description: The directory.
    type: path
    required: true
  files:
    description: Contents of the files, by name.
    type: dict
    default: {}
  owner:
    description: Number of the user and the group that own directory and files.
    type: int
    default: 0
  mode:
    description: Mode of the directory, an octal number in quotes.
    type: str
    default: "0755"
  file_mode:
    description: Mode of the files, an octal number in quotes.
    type: str
    default: "0644"
  file_modes:
    description: Modes of single files, by name, where they have another than O(file_mode).
    type: dict
    default: {}
  absent:
    description: Names of files that the directory is not to have.
    type: list
    elements: str
    default: []
attributes:
  check_mode:
    description: Says what would change.
    support: full
  diff_mode:
    description: Names the files that differ.
    support: partial
    details: Contents may be secrets and do not show.
  idempotent:
    description: Nothing is written if all is as asked for.
    support: full
"""

EXAMPLES = r"""
- name: Have a certificate and its key where the runtime looks
  edgeml.fleet.file_set:
    path: /etc/edgeml/runtime
    owner: 65532
    mode: "0750"
    file_mode: "0400"
    files:
      server.crt: "{{ lookup('ansible.builtin.file', 'pki/camera-1.crt') }}"
      server.key: "{{ lookup('ansible.builtin.file', 'pki/camera-1.key') }}"
"""

RETURN = r"""
removed:
  description: Names of the files that were removed, or would be in check mode.
  returned: success
  type: list
  elements: str
  sample: []
written:
  description: Names of the files that were written, or would be in check mode.
  returned: success
  type: list
  elements: str
  sample: ["server.crt"]
what:
  description: What went wrong.
  returned: failure
  type: str
  sample: Something else is where a directory has to be
where:
  description: The directory or option concerned.
  returned: failure
  type: str
  sample: /etc/edgeml/runtime
seen:
  description: What was seen there.
  returned: failure
  type: str
  sample: ""
remedy:
  description: What to do next.
  returned: failure
  type: str
  sample: move it away, or choose another directory
"""

from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._host.file_set import FileSet
from ansible_collections.edgeml.fleet.plugins.module_utils._module import run

ARGUMENT_SPEC: dict[str, Any] = {
    "path": {"type": "path", "required": True},
    "files": {"type": "dict", "default": {}, "no_log": True},
    "owner": {"type": "int", "default": 0},
    "mode": {"type": "str", "default": "0755"},
    "file_mode": {"type": "str", "default": "0644"},
    "file_modes": {"type": "dict", "default": {}},
    "absent": {"type": "list", "elements": "str", "default": []},
}


def apply(module: AnsibleModule) -> dict[str, Any]:
    """Make the directory what the options say."""
    options = module.params
    wanted = FileSet(
        Path(options["path"]),
        {name: str(content).encode() for name, content in options["files"].items()},
        options["owner"],
        _mode("mode", options["mode"]),
        _mode("file_mode", options["file_mode"]),
        {name: _mode("file_modes", mode) for name, mode in options["file_modes"].items()},
        options["absent"],
    )
    return wanted.apply(check_mode=module.check_mode)


def _mode(option: str, text: str) -> int:
    try:
        return int(text, 8)
    except (TypeError, ValueError):
        raise FleetError(
            "Not a mode",
            where=option,
            seen=repr(text),
            remedy='give four octal digits in quotes, such as "0640"',
        ) from None


def main() -> None:
    """Run the module."""
    run(ARGUMENT_SPEC, apply)


if __name__ == "__main__":
    main()
