#!/usr/bin/python
# Copyright (c) edgeml.fleet contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Write what a lock names to a directory that people carry to a site, or make a store anew of it."""

from __future__ import annotations

DOCUMENTATION = r"""
module: content_bundle
short_description: Write what a lock names to a directory that people carry, or make a store anew of it
version_added: 0.1.0
description:
  - Makes a directory hold exactly the images and models that C(fleet.lock.yml) names, with their signatures and the
    lock, each verified by its digest. M(edgeml.fleet.mirror_sync) reads it where there is no uplink.
  - The directory is an OCI image layout, which other tools such as skopeo and oras read as well. It has no links, and
    names that any file system takes. Where files end at 4 GiB (FAT32), larger ones come in parts, which those other
    tools do not read.
  - An interrupted run is continued by the next one. What is there already is not fetched again, unless it
    is damaged.
  - The same directory is a backup of what the lock names. With O(state=restored) it goes to O(store), an empty one or
    any other OCI registry, as it was, signatures and tags of model versions included. What the store has since is kept.
author: edgeml.fleet contributors (@edgeml)
requirements:
  - Python 3.8 or newer
extends_documentation_fragment:
  - edgeml.fleet.registry.store
  - edgeml.fleet.signatures
attributes:
  check_mode:
    description: Can run in check mode and return changed status without modifying the target.
    details: Manifests that the bundle lacks are read from the store.
    support: full
  diff_mode:
    description: Returns nothing but what changed.
    support: none
  idempotent:
    description: Does nothing if the directory holds what the lock names.
    support: full
options:
  state:
    description: Whether the directory is made from the store (C(present)), or the store from the directory.
    type: str
    choices: [present, restored]
    default: present
  path:
    description: The directory, made if it does not exist. What the lock does not name is removed from its C(blobs).
    type: path
    required: true
  lock:
    description: Content of C(fleet.lock.yml). Required unless O(state=restored).
    type: dict
  needed:
    description: The part of the lock that is written, as for M(edgeml.fleet.mirror_sync). All of it by default.
    type: dict
  held:
    description:
      - Blobs that are left out, as M(edgeml.fleet.mirror_sync) returned them for the mirror that has them.
      - Such a directory is no backup.
    type: list
    elements: str
    default: []
  part_mb:
    description:
      - Largest file in MiB; what is larger comes in parts. V(0) for as large as the file system of O(path) takes.
      - For a directory that is copied to a FAT32 stick later, V(4095).
    type: int
    default: 0
  architectures:
    description:
      - Architectures of the site's hosts, named as in OCI. They bound what is written with O(needed) or O(held).
      - A backup has all architectures.
    type: list
    elements: str
    choices: [amd64, arm64]
    default: [amd64, arm64]
  packages:
    description:
      - Debian packages that the bundle brings besides, with all that they depend on, as a signed apt repository for
        each suite in its directory C(packages). None if omitted.
      - Needs mmdebstrap, apt-utils, gpg and gpg-agent.
    type: dict
    suboptions:
      suites:
        description: Debian's suites of the site's hosts.
        type: list
        elements: str
        choices: [bookworm, trixie]
        required: true
      names:
        description: Names of packages.
        type: list
        elements: str
        default: []
      engine_packages:
        description: Packages that bring an engine. Those of Debian if empty.
        type: list
        elements: str
        default: []
      key_file:
        description: A secret OpenPGP key without passphrase, made if there is none; the public key is beside it.
        type: path
        required: true
"""

EXAMPLES = r"""
- name: Write all that the fleet's lock names to a stick
  edgeml.fleet.content_bundle:
    path: /media/stick/bundle
    lock: "{{ lookup('ansible.builtin.file', 'fleet.lock.yml') | from_yaml }}"
    signatures:
      trusted_keys: ["{{ lookup('ansible.builtin.file', 'keys/release.pub') }}"]
      lock_signature: "{{ lookup('ansible.builtin.file', 'fleet.lock.yml.sig') }}"
    store:
      address: store.edgeml.internal:5000
      username: mirror
      password: "{{ store_password }}"
      ca_file: /etc/edgeml/tls/ca.crt

- name: Make an empty store what the backup holds
  edgeml.fleet.content_bundle:
    state: restored
    path: /srv/backup/bundle
    store:
      address: store.edgeml.internal:5000
      username: publisher
      password: "{{ store_password }}"
      ca_file: /etc/edgeml/tls/ca.crt
"""

RETURN = r"""
blobs_sent:
  description: Number of blobs that the store lacked.
  returned: if O(state=restored)
  type: int
  sample: 4
bytes_sent:
  description: Their bytes.
  returned: if O(state=restored)
  type: int
  sample: 61203441
manifests_sent:
  description: Number of manifests and tags that the store lacked.
  returned: if O(state=restored)
  type: int
  sample: 12
generation:
  description: Serial of the lock.
  returned: if O(state=present)
  type: int
  sample: 3
blobs_fetched:
  description: Number of blobs read from the store, or in check mode to be read.
  returned: if O(state=present)
  type: int
  sample: 4
bytes_fetched:
  description: Their bytes.
  returned: if O(state=present)
  type: int
  sample: 61203441
bytes_total:
  description: Bytes of all blobs of the bundle.
  returned: if O(state=present)
  type: int
  sample: 131072000
what:
  description: What went wrong.
  returned: failure
  type: str
  sample: The lock is not signed
where:
  description: The file or address that it concerns.
  returned: failure
  type: str
  sample: fleet.lock.yml.sig
seen:
  description: What was seen there.
  returned: failure
  type: str
  sample: no signature
remedy:
  description: What to do.
  returned: failure
  type: str
  sample: sign it with the playbook edgeml.fleet.sign
"""

from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.edgeml.fleet.plugins.module_utils._host.distribution import SUITES, engine_packages_of
from ansible_collections.edgeml.fleet.plugins.module_utils._image.package_repository import export_packages
from ansible_collections.edgeml.fleet.plugins.module_utils._mirror.bundle import export
from ansible_collections.edgeml.fleet.plugins.module_utils._mirror.restore import restore
from ansible_collections.edgeml.fleet.plugins.module_utils._module import run
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.registry import REGISTRY_ARGUMENT, Registry
from ansible_collections.edgeml.fleet.plugins.module_utils._signature.lock import SIGNATURES_ARGUMENT, Trust

ARGUMENT_SPEC: dict[str, Any] = {
    "state": {"type": "str", "choices": ["present", "restored"], "default": "present"},
    "path": {"type": "path", "required": True},
    "store": REGISTRY_ARGUMENT,
    "lock": {"type": "dict"},
    "needed": {"type": "dict"},
    "held": {"type": "list", "elements": "str", "default": []},
    "part_mb": {"type": "int", "default": 0},
    "architectures": {
        "type": "list",
        "elements": "str",
        "choices": ["amd64", "arm64"],
        "default": ["amd64", "arm64"],
    },
    "signatures": SIGNATURES_ARGUMENT,
    "packages": {
        "type": "dict",
        "options": {
            "suites": {"type": "list", "elements": "str", "choices": sorted(SUITES), "required": True},
            "names": {"type": "list", "elements": "str", "default": []},
            "engine_packages": {"type": "list", "elements": "str", "default": []},
            "key_file": {"type": "path", "required": True, "no_log": False},
        },
    },
}


def write(module: AnsibleModule) -> dict[str, Any]:
    """Bring the bundle to the lock's content, or the store to the bundle's."""
    options = module.params
    if options["state"] == "restored":
        return restore(Path(options["path"]), Registry.from_options(options["store"]), write=not module.check_mode)
    result = export(
        Path(options["path"]),
        Registry.from_options(options["store"]),
        options["lock"],
        options["architectures"],
        write=not module.check_mode,
        trust=Trust.from_options(options["signatures"]),
        needed=options["needed"],
        held=frozenset(options["held"]),
        part_bytes=options["part_mb"] << 20,
    )
    packages = options["packages"]
    if not packages:
        return result
    suites = {
        suite: sorted({*(packages["engine_packages"] or engine_packages_of(suite)), *packages["names"]})
        for suite in packages["suites"]
    }
    changed = export_packages(
        Path(options["path"]) / "packages",
        suites,
        options["architectures"],
        Path(packages["key_file"]),
        write=not module.check_mode,
    )
    return {**result, "changed": result["changed"] or changed}


def main() -> None:
    """Run the module."""
    run(ARGUMENT_SPEC, write, required_if=[("state", "present", ["lock"])])


if __name__ == "__main__":
    main()
