#!/usr/bin/python
# Copyright (c) edgeml.fleet contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Look at a host and judge whether it can take what is meant for it."""

from __future__ import annotations

DOCUMENTATION = r"""
module: host_preflight
short_description: Judge whether a host can take what is meant for it
version_added: 0.1.0
author:
  - edgeml.fleet contributors (@edgeml)
description:
  - "Looks at disk, memory, clock, certificates, kernel, engine, architecture, ports, the registry, packages, devices,
    kernel modules and sysctls, and compares them with what the host is meant to take. Changes nothing."
  - A host that cannot be reached, or has no Python that Ansible can use, is a finding as well and not an error.
  - What the host is (architecture, memory, features of the processor, accelerator) becomes the fact RV(ansible_facts).
requirements:
  - Python 3.8 or newer for a judgement; an older one is a finding.
attributes:
  check_mode:
    description: Nothing is ever changed.
    support: full
  diff_mode:
    description: There is nothing to compare.
    support: none
  idempotent:
    description: Nothing is ever changed.
    support: full
options:
  architecture:
    description: Architecture that the inventory gives the host. Any supported one if omitted.
    type: str
    choices: [amd64, arm64]
  demand:
    description:
      - Items of other options, O(problems), O(content), O(requires), O(memory_mb) and O(ports), in one value, as the
        filter P(edgeml.fleet.runtime_demand#filter) returns it. They stand before what those options say themselves.
    type: dict
    default: {}
  problems:
    description: What the controller knows to be wrong before it looks at the host. Each becomes a finding.
    type: list
    elements: dict
    default: []
    suboptions:
      finding:
        description: Name of the finding; V(unsigned) and V(unchecked) only warn.
        type: str
        choices: [inventory, signature, unsigned, unchecked]
        default: inventory
      what:
        description: What is wrong, one clause.
        type: str
        required: true
      where:
        description: The file, host or variable.
        type: str
        default: ""
      seen:
        description: The value that was seen.
        type: str
        default: ""
      remedy:
        description: What to do next.
        type: str
        default: ""
  content:
    description: What the host has to hold.
    type: list
    elements: dict
    default: []
    suboptions:
      kind:
        description:
          - V(image) for the host's engine, V(model) below O(root), V(mirrored) below O(mirror_root).
        type: str
        choices: [image, model, mirrored]
        required: true
      name:
        description: What people call it.
        type: str
        required: true
      repository:
        description: Its repository in O(registry).
        type: str
        required: true
      digest:
        description: Digest of the manifest, for a model that of its tar blob.
        type: str
        required: true
      size:
        description: Bytes as transferred.
        type: int
        required: true
      runtime:
        description: Name of the runtime that serves the model.
        type: str
        default: runtime
  registry:
    description: Where the host gets what it lacks. It is asked only if something is missing.
    type: dict
    suboptions:
      address:
        description: Name and port.
        type: str
        required: true
      ip_address:
        description: IP address where no name service knows the name.
        type: str
        default: ""
      ca_certificate:
        description: Certificate authority, as PEM text.
        type: str
        default: ""
      username:
        description: User name, if the registry asks for one.
        type: str
        default: ""
      password:
        description: The user's password.
        type: str
        default: ""
      client_certificate: {type: str, default: "", description: PEM text to present where the registry asks for it.}
      client_key: {type: str, default: "", description: "Its key, as PEM text."}
  root:
    description: Directory for models, releases and state.
    type: path
    default: /var/lib/edgeml
  mirror_root:
    description: Directory of a site mirror.
    type: path
    default: /var/lib/edgeml/mirror
  memory_mb:
    description: MiB that each runtime with its models needs, by name of the runtime.
    type: dict
    default: {}
  ports:
    description: TCP ports to listen on. A port that one of this collection's containers holds is fine.
    type: list
    elements: dict
    default: []
    suboptions:
      address:
        description: IP address.
        type: str
        required: true
      port:
        description: Port.
        type: int
        required: true
      variable:
        description: The variable that sets it.
        type: str
        required: true
  directories:
    description: Directories that are written to, by the variable that names each.
    type: dict
    default: {}
  certificates:
    description: Validity of the certificates that are meant for the host, as the filter C(certificate) gives it.
    type: list
    elements: dict
    default: []
    suboptions:
      path:
        description: The file on the controller.
        type: str
        required: true
      not_before:
        description: Begin of validity, seconds since the epoch.
        type: float
        default: 0
      not_after:
        description: End of validity, seconds since the epoch.
        type: float
        default: 0
      error:
        description: Why the file cannot be read.
        type: str
        default: ""
  engine_packages:
    description:
      - Packages of the Docker Engine, if the host has to have one; empty for those of its distribution.
      - Omitted for a host that needs no engine.
    type: list
    elements: str
  engine_is_here:
    description: Whether a host without an engine is refused, since nothing will install one any more.
    type: bool
    default: false
  packages_from_mirror: {type: bool, default: false, description: Whether no package source but the mirror counts.}
  engine_configuration:
    description: What the configuration of an engine to come will say.
    type: dict
    default: {}
  requires:
    description: What all models of the host together require.
    type: dict
    default: {}
    suboptions:
      packages:
        description: Debian packages that have to be installed or obtainable.
        type: list
        elements: str
        default: []
      devices:
        description: Device files that have to be there, and names of the Container Device Interface.
        type: list
        elements: str
        default: []
      gpus: {type: list, elements: str, default: [], description: "Numbers or ids of GPUs of NVIDIA, or V(all) alone."}
      kernel_modules:
        description: Kernel modules that have to be loaded or loadable.
        type: list
        elements: str
        default: []
      sysctls: {type: list, elements: str, default: [], description: Kernel settings that have to exist.}
  controller_time:
    description: The controller's time in seconds since the epoch; now if omitted.
    type: float
  ignore:
    description: Names of findings that only warn.
    type: list
    elements: str
    default: []
  refuse:
    description: Whether the task fails if a finding refuses. If not, the findings are only returned.
    type: bool
    default: true
"""

EXAMPLES = r"""
- name: Refuse a host that has no room for an image, or whose port is taken
  edgeml.fleet.host_preflight:
    content:
      - kind: image
        name: image runtime
        repository: edgeml/runtime
        digest: sha256:9834876dcfb05cb167a5c24953eba58c4ac89b1adf57f28f2f9d09af107ee8f0
        size: 104857600
    ports:
      - {address: 127.0.0.1, port: 8000, variable: inference_runtime_rest_port}

- name: Only learn what the host is
  edgeml.fleet.host_preflight:
    refuse: false
"""

RETURN = r"""
findings:
  description: What a person has to know, those that refuse first.
  returned: always
  type: list
  elements: dict
  sample:
    - name: port
      severity: refuse
      value: 127.0.0.1:8000 is held by nginx (process 812)
      need: a free port
      remedy: stop that program, or change inference_runtime_rest_port
missing:
  description: What of O(content) the host does not have yet.
  returned: success
  type: list
  elements: dict
  sample: []
ansible_facts:
  description: What the host is.
  returned: success
  type: dict
  sample:
    edgeml_host: {architecture: arm64, memory_mb: 3792, cpu_features: [asimd, fp], accelerator: ""}
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.edgeml.fleet.plugins.module_utils._module import command_runner, run
from ansible_collections.edgeml.fleet.plugins.module_utils._preflight.examine import examine
from ansible_collections.edgeml.fleet.plugins.module_utils._preflight.host import Host, Wanted
from ansible_collections.edgeml.fleet.plugins.module_utils._preflight.options import ARGUMENT_SPEC


def judge(module: AnsibleModule) -> dict[str, Any]:
    """Examine the host."""
    result = examine(Host(command_runner(module)), Wanted.from_options(module.params)).as_result()
    return {**result, "failed": bool(result["msg"]) and module.params["refuse"]}


def main() -> None:
    """Run the module."""
    run(ARGUMENT_SPEC, judge)


if __name__ == "__main__":
    main()
