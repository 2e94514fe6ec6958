#!/usr/bin/python
# Copyright (c) edgeml.fleet contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Compare a host with the record of its last successful converge, or write that record."""

from __future__ import annotations

DOCUMENTATION = r"""
module: host_state
short_description: Tell in one call whether a host still is what its last converge made of it
version_added: 0.2.0
author:
  - edgeml.fleet contributors (@edgeml)
description:
  - A role that succeeded records the digest of all that it was told (its document) and what it left on the host
    (evidence, such as files by hash, packages, kernel values, containers).
  - The next run asks for the comparison first. A host whose documents and evidence are equal needs nothing else; the
    others are put into O(group), and only they are converged.
  - Changes nothing on the host but its own record.
options:
  state:
    description: V(compared) tells what differs, V(recorded) writes the record of one section, V(absent) removes it.
    type: str
    choices: [compared, recorded, absent]
    default: compared
  documents:
    description:
      - For V(compared), the variable that holds the document of each section, by the section's name.
      - Names rather than values, since a document may depend on what only the host knows, such as its architecture.
    type: dict
    default: {}
  group:
    description:
      - For V(compared), the group for hosts that differ. Hosts that cannot be asked are put there too.
      - Those that cannot be reached are in its child group, the same name and C(_unreached).
    type: str
  force:
    description: For V(compared), whether every host counts as different. Nothing is asked then.
    type: bool
    default: false
  section:
    description: For V(recorded) and V(absent), the name of the section, as a rule that of the role.
    type: str
  document:
    description: For V(recorded), all that the role was told. Only its digest reaches the host.
    type: raw
  evidence:
    description:
      - For V(recorded), what the role left on the host. Each entry has a C(kind) and what that kind needs.
      - C(file), C(directory), C(files) and C(tree) need C(path); C(line) needs C(path) and C(line).
      - C(packages) needs C(names); C(kernel) needs C(modules) and C(sysctls) (lists of names).
      - C(service) and C(container) need C(name).
      - C(ready) needs C(endpoint) (C(http://), C(https://) or C(http+unix:///)) and C(path), and may have C(status).
    type: list
    elements: dict
    default: []
  note:
    description: For V(recorded), anything else to give back with the next comparison, such as what was measured.
    type: raw
  directory:
    description: Where the host keeps its records.
    type: path
    default: /var/lib/edgeml/converged
attributes:
  check_mode:
    description: The comparison is the same; nothing is recorded.
    support: full
  diff_mode:
    description: RV(reasons) tells what differs.
    support: none
  idempotent:
    description: A comparison reads only.
    support: full
"""

EXAMPLES = r"""
- name: Compare the host with its last converge
  edgeml.fleet.host_state:
    documents:
      inference_runtime: __inference_runtime_document
    group: edgeml_pending_devices

- name: Record what the host is now
  edgeml.fleet.host_state:
    state: recorded
    section: inference_runtime
    document: "{{ __inference_runtime_document }}"
    evidence:
      - {kind: container, name: edgeml-runtime}
"""

RETURN = r"""
unchanged:
  description: Whether the host is what all its sections say.
  returned: when compared
  type: bool
  sample: false
reasons:
  description: Why the host has to be converged, a list of lines by section.
  returned: when compared
  type: dict
  sample: {"inference_runtime": ["container edgeml-runtime is not as it was: running, now stopped"]}
changed_documents:
  description: The sections whose document is another one than was recorded.
  returned: when a host answered
  type: list
  elements: str
  sample: ["inference_runtime"]
documents:
  description: By section, the digest of the document that the last successful converge made true.
  returned: when compared
  type: dict
  sample: {"inference_runtime": "1f0c9a"}
notes:
  description: By section, the O(note) that was recorded with it.
  returned: when a host answered
  type: dict
  sample: {}
ansible_facts:
  description: What the host is, as the module edgeml.fleet.host_preflight tells it.
  returned: when compared
  type: dict
  sample:
    edgeml_host: {architecture: arm64, memory_mb: 3792, cpu_features: [asimd, fp], accelerator: ""}
"""

from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.edgeml.fleet.plugins.module_utils._host.facts import host_facts
from ansible_collections.edgeml.fleet.plugins.module_utils._host.record import compare, forget, record
from ansible_collections.edgeml.fleet.plugins.module_utils._module import command_runner, run

ARGUMENT_SPEC: dict[str, Any] = {
    "state": {"type": "str", "choices": ["compared", "recorded", "absent"], "default": "compared"},
    "documents": {"type": "dict", "default": {}},
    "group": {"type": "str"},
    "force": {"type": "bool", "default": False},
    "section": {"type": "str"},
    "document": {"type": "raw"},
    "evidence": {"type": "list", "elements": "dict", "default": []},
    "note": {"type": "raw"},
    "directory": {"type": "path", "default": "/var/lib/edgeml/converged"},
}


def remember(module: AnsibleModule) -> dict[str, Any]:
    """Compare the host with its records, or write or remove one of them."""
    options = module.params
    directory, section = Path(options["directory"]), options["section"]
    if options["state"] == "compared":
        answer = compare(directory, list(options["documents"]), command_runner(module))
        return {**answer, "ansible_facts": {"edgeml_host": host_facts()}}
    if options["state"] == "absent":
        return {"changed": forget(directory, section, check_mode=module.check_mode)}
    if not module.check_mode:
        document, evidence, note = str(options["document"]), options["evidence"], options["note"]
        record(directory, section, document, evidence, note, command_runner(module))
    return {}


def main() -> None:
    """Run the module; the action plugin of the same name makes digests of documents."""
    run(
        ARGUMENT_SPEC,
        remember,
        required_if=[
            ("state", "compared", ["documents", "group"]),
            ("state", "recorded", ["section", "document"]),
            ("state", "absent", ["section"]),
        ],
    )


if __name__ == "__main__":
    main()
