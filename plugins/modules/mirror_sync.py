#!/usr/bin/python
# Copyright (c) edgeml.fleet contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Copy what a lock names from the model store to a site mirror."""

from __future__ import annotations

DOCUMENTATION = r"""
module: mirror_sync
short_description: Copy what a lock names from the model store, or from a bundle, to a site mirror
version_added: 0.1.0
description:
  - Makes a directory tree hold exactly the images and models that the site needs of C(fleet.lock.yml), for the site's
    architectures, each verified by its digest. A web server delivers the tree as a read-only OCI registry.
  - What is served moves to the new content in one step when all of it is there. After any failure the mirror serves
    what it served before.
  - An interrupted download is continued by the next run. If nothing is missing, the store is not asked.
  - The work is done by a process of its own, under systemd where there is one. It goes on when the connection or the
    controller is lost, and after a restart of the host. The next run attaches to it. Another lock, or other options,
    take its place; what it has fetched is kept.
  - If it has to wait for O(limits), the module fails and says when it goes on by itself.
  - Several blobs come at a time; what images and models share comes once. O(limits) says how much of the uplink all of
    them together may take.
author: edgeml.fleet contributors (@edgeml)
requirements:
  - Python 3.8 or newer
  - The lock has to be signed by a key in O(signatures.trusted_keys), and each manifest that it leads to as well, in one
    of cosign's formats. The mirror serves these signatures too, so that C(cosign verify --key) works at the site.
extends_documentation_fragment:
  - edgeml.fleet.registry.optional_store
  - edgeml.fleet.signatures
  - edgeml.fleet.uplink
attributes:
  check_mode:
    description: Can run in check mode and return changed status without modifying the target.
    details: Manifests that the mirror lacks are read from the store.
    support: full
  diff_mode:
    description: Returns the files of the served generation before and after.
    support: full
  idempotent:
    description: Does nothing if the tree holds what the lock names.
    support: full
options:
  root:
    description: Directory of the tree. It is made if it does not exist.
    type: path
    required: true
  bundle:
    description:
      - Directory on this host that M(edgeml.fleet.content_bundle) has written, such as one on a USB stick. All is read
        from there, and verified as if it came from a store.
      - Exactly one of O(store) and O(bundle) is given.
    type: path
  lock:
    description:
      - Content of C(fleet.lock.yml).
      - A serial lower than the one that the mirror serves is refused, unless O(signatures.accept_older_lock) says so.
    type: dict
    required: true
  architectures:
    description: Architectures of the site's hosts, named as in OCI. Each image must be in the lock for all of them.
    type: list
    elements: str
    choices: [amd64, arm64]
    default: [amd64, arm64]
  needed:
    description:
      - The part of the lock that the site needs, as the filter P(edgeml.fleet.site_content#filter) says it. All of it
        by default.
      - C(images) is a list of names, C(models) has by name and version a list of variants, an empty one for all.
    type: dict
  in_use:
    description:
      - Digests of models and images that a host of the site may still use. Whatever has one stays, or comes if the lock
        has it.
    type: list
    elements: str
    default: []
  keep_generations:
    description:
      - How many generations to keep, the served one included. Content of others is removed.
      - Where the disk lacks room for what is to come, those that are not kept go first.
    type: int
    default: 2
  scrub:
    description: Read all blobs anew first. What is not what its digest says is removed, and copied again.
    type: bool
    default: false
  report_after:
    description:
      - Seconds after which the module ends though the work does not. It then returns RV(running) and RV(progress).
      - 0 lets it wait for the end. In a playbook, progress is shown meanwhile in any case.
    type: int
    default: 0
  attach:
    description: Whether the result of the same work that has ended already will do, without another look at the tree.
    type: bool
    default: false
"""

EXAMPLES = r"""
- name: Copy what the site's hosts need
  edgeml.fleet.mirror_sync:
    root: /var/lib/edgeml/mirror
    lock: "{{ lookup('ansible.builtin.file', 'fleet.lock.yml') | from_yaml }}"
    signatures:
      trusted_keys: ["{{ lookup('ansible.builtin.file', 'keys/release.pub') }}"]
      lock_signature: "{{ lookup('ansible.builtin.file', 'fleet.lock.yml.sig') }}"
    store:
      address: store.edgeml.internal:5000
      username: mirror
      password: "{{ store_password }}"
      ca_file: /etc/edgeml/tls/ca.crt

- name: Copy it from a stick, where there is no uplink, and read anew what is there already
  edgeml.fleet.mirror_sync:
    root: /var/lib/edgeml/mirror
    bundle: /media/stick/bundle
    lock: "{{ lookup('ansible.builtin.file', 'fleet.lock.yml') | from_yaml }}"
    signatures: {mode: ignored}
    scrub: true
"""

RETURN = r"""
generation:
  description: Serial of the lock that the mirror serves.
  returned: success
  type: int
  sample: 3
generation_before:
  description: Serial of the lock that the mirror served before, null for none.
  returned: success
  type: int
  sample: 2
plan:
  description:
    - What was changed, or in check mode would be. C(action) is C(none) or C(sync).
    - C(bytes) are those that cross the uplink, each blob counted once and without what an interrupted copy has left.
    - C(bill) says what they take at O(limits). C(seconds) of traffic, spread over C(days) in which something is moved;
      null where no limit tells. C(mbit) and C(hours) are the limits.
  returned: success
  type: dict
  sample:
    action: sync
    generation: {before: 2, after: 3}
    blobs: 4
    bytes: 61203441
    removed_blobs: 0
    bill: {seconds: 490, days: 1, mbit: 1.0, hours: ["22:00-05:00"]}
running:
  description: True if the work goes on, because of O(report_after).
  returned: if it goes on
  type: bool
  sample: true
progress:
  description: What C(sync/status.json) in the tree says.
  returned: if it goes on
  type: dict
  sample:
    state: running
    serial: 3
    bytes_done: 20971520
    bytes_total: 61203441
    bytes_per_second: 125000
    seconds_left: 322
    time: "2026-11-28T22:05:00+01:00"
blobs_fetched:
  description: Number of blobs copied.
  returned: success
  type: int
  sample: 4
bytes_fetched:
  description: Bytes transferred for them; less than their size where an interrupted copy was continued.
  returned: success
  type: int
  sample: 61203441
blobs_total:
  description: Number of blobs that the lock leads to.
  returned: success
  type: int
  sample: 17
bytes_total:
  description: Their bytes.
  returned: success
  type: int
  sample: 131072000
damaged_blobs:
  description: Digests of the blobs that held something else than they say, with O(scrub). They were copied again.
  returned: success
  type: list
  elements: str
  sample: []
held:
  description: The blobs that the mirror holds, each by the first 16 digits of its digest.
  returned: success
  type: list
  elements: str
  sample: [fca0be072e43d1a5]
removed_blobs:
  description: Number of blobs removed because no kept generation refers to them.
  returned: success
  type: int
  sample: 0
what:
  description: What went wrong.
  returned: failure
  type: str
  sample: The lock is older than what the mirror serves
where:
  description: The file or address that it concerns.
  returned: failure
  type: str
  sample: /var/lib/edgeml/mirror/current
seen:
  description: What was seen there.
  returned: failure
  type: str
  sample: serial 3 in the lock, 4 on the mirror
remedy:
  description: What to do.
  returned: failure
  type: str
  sample: use the newest fleet.lock.yml; to go back, publish the older content again under a higher serial
"""

from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.edgeml.fleet.plugins.module_utils._mirror.agent import Synchronization, perform
from ansible_collections.edgeml.fleet.plugins.module_utils._mirror.transfer import PARALLEL
from ansible_collections.edgeml.fleet.plugins.module_utils._mirror.uplink import LIMITS_ARGUMENT, Limits
from ansible_collections.edgeml.fleet.plugins.module_utils._module import run
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.registry import REGISTRY_ARGUMENT
from ansible_collections.edgeml.fleet.plugins.module_utils._signature.lock import SIGNATURES_ARGUMENT

ARGUMENT_SPEC: dict[str, Any] = {
    "root": {"type": "path", "required": True},
    "store": {**REGISTRY_ARGUMENT, "required": False},
    "bundle": {"type": "path"},
    "lock": {"type": "dict", "required": True},
    "architectures": {
        "type": "list",
        "elements": "str",
        "choices": ["amd64", "arm64"],
        "default": ["amd64", "arm64"],
    },
    "needed": {"type": "dict"},
    "in_use": {"type": "list", "elements": "str", "default": []},
    "keep_generations": {"type": "int", "default": 2},
    "fallbacks": {
        "type": "list",
        "elements": "dict",
        "default": [],
        **{key: value for key, value in REGISTRY_ARGUMENT.items() if key not in ("type", "required")},
    },
    "limits": LIMITS_ARGUMENT,
    "parallel": {"type": "int", "default": PARALLEL},
    "patience": {"type": "int", "default": 0},
    "scrub": {"type": "bool", "default": False},
    "report_after": {"type": "int", "default": 0},
    "attach": {"type": "bool", "default": False},
    "signatures": SIGNATURES_ARGUMENT,
}


def mirror(module: AnsibleModule) -> dict[str, Any]:
    """Bring the mirror to the lock's content."""
    options = {name: module.params[name] for name in ARGUMENT_SPEC if name not in ("report_after", "attach")}
    Limits.from_options(options["limits"])  # refused before anything is begun
    if module.check_mode:
        return perform(options, write=False)
    work = Synchronization(Path(options["root"]))
    work.warn = module.warn
    return work.synchronize(options, module.params["report_after"], attach=module.params["attach"])


def main() -> None:
    """Run the module."""
    run(ARGUMENT_SPEC, mirror, required_one_of=[("store", "bundle")], mutually_exclusive=[("store", "bundle")])


if __name__ == "__main__":
    main()
