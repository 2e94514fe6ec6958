#!/usr/bin/python
# Copyright (c) edgeml.fleet contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Make one release of the inference runtime the active one on this host."""

from __future__ import annotations

DOCUMENTATION = r"""
module: runtime_release
short_description: Make a release of the inference runtime active on a host
version_added: 0.1.0
author:
  - edgeml.fleet contributors (@edgeml)
description:
  - Takes the whole desired release (image and models by digest, configuration, objectives) and brings the host there
    as one transaction that runs on the host.
  - "The steps: compare, stage (pull the image, fetch and verify the models), start a candidate on private sockets,
    check it, hand over, commit."
  - "The gates of the check: it becomes ready; golden outputs; latency objectives; latency against the release that
    serves, measured in turns; errors under a burst; a share of live requests; memory. RV(gates) has what was
    measured and allowed. A release that does not pass never takes traffic, and is not tried again until it or its
    objectives change, or O(force) says so."
  - The transaction runs in a process of its own on the host, under systemd where there is one. A lost connection or a
    killed controller does not end it; the next run attaches to it or finds what became of it. C(journalctl --unit
    'edgeml-release-*') and the module M(edgeml.fleet.runtime_release_info) tell what it does.
  - "On a host with systemd a guard (C(edgeml-guard.timer)) looks after the active release. In the probation of a
    release a crash loop, a lack of memory or a minute without readiness takes the host back to the previous release,
    later a crash loop or five minutes; that is done once, and remembered."
  - "The collection's runtime hands over without a gap: the checked candidate opens the public ports beside the release
    that serves, which then finishes its requests and goes. Another server is stopped before the new one starts; if that
    one does not become ready, the old one is started again."
  - A release becomes active only if a lock that the keys in O(signatures.trusted_keys) have signed names its image and
    its models. That is checked before anything is fetched, on the host, without network and clock. The host remembers
    the serial of the lock, and refuses older ones.
extends_documentation_fragment:
  - edgeml.fleet.signatures
  - edgeml.fleet.release_container
  - edgeml.fleet.release_container.models
requirements:
  - Docker Engine 20.10 or newer with its command line client
options:
  state:
    description:
      - V(active) makes the release active, V(absent) removes the runtime, its models and its images.
      - V(previous) goes back to the previous release, or to O(release), by the same hand-over. The host needs nobody
        for it. The release that it leaves is not tried again until it changes or O(force) says so. A host that has gone
        back already stays as it is, with a warning, unless O(release) names the release that it left.
    type: str
    choices: [active, previous, absent]
    default: active
  release:
    description:
      - With O(state=previous) the id of the release to go back to, or the first 8 characters of it or more.
      - Empty for the previous one. A host keeps the active and the previous release.
    type: str
    default: ""
  force:
    description: Try a release again that this host has refused or left.
    type: bool
    default: false
  name:
    description:
      - Name of the runtime. V(runtime) has the container C(edgeml-runtime) and O(root) itself, any other one the
        container C(edgeml-runtime-NAME) and the directory C(runtimes/NAME) below O(root).
    type: str
    default: runtime
  runtimes:
    description:
      - Names of all runtimes that the host keeps, in the order in which they are released. With the last one, and with
        O(state=absent), those that are not named are removed.
      - If omitted, other runtimes are left alone.
    type: list
    elements: str
  image:
    description: Reference of the image by the digest of the manifest for this host's architecture.
    type: str
  image_size:
    description: Bytes of the image as transferred, to check the disk.
    type: int
    default: 0
  configuration:
    description: The runtime's configuration without its models.
    type: dict
    default: {}
  secrets:
    description:
      - SHA-256 digest, in hexadecimal, that each file in O(secrets_directory) must have, by its name.
      - A file that changes makes another release. Without this option the files are read, so that check mode does not
        know what a task before would write there.
    type: dict
  secrets_directory:
    description: Directory on the host with certificate, key and token, mounted read-only at the same path.
    type: path
    default: ""
  lock:
    description: Content of the signed lock. It names the image and the models.
    type: dict
  ca_file:
    description: Certificate authority of the registry, on the host.
    type: path
    default: ""
  root:
    description: Directory on the host for models, releases and state.
    type: path
    default: /var/lib/edgeml
  start_timeout:
    description: Seconds that a container may take to become ready.
    type: float
    default: 60
  probation_seconds:
    description: Seconds for which the guard is strict with a new release.
    type: int
    default: 600
  objective_minutes:
    description:
      - Minutes for which live requests may miss an objective, by the runtime's own counts, before the guard goes back.
      - V(0) for any time.
    type: float
    default: 5
  guard_repairs:
    description:
      - Whether the guard makes the active release anew when its container is stopped, removed, replaced or edited, or a
        model of it is gone. Otherwise the next run does.
    type: bool
    default: false
attributes:
  check_mode:
    description: Says what would change.
    support: full
  diff_mode:
    description: Shows the active and the desired release.
    support: full
  idempotent:
    description: Nothing is done if the release is active, running and ready.
    support: full
"""

EXAMPLES = r"""
- name: Serve one model
  edgeml.fleet.runtime_release:
    image: registry.edgeml.internal:5443/edgeml/runtime@{{ runtime_digest }}
    ca_file: /etc/docker/certs.d/registry.edgeml.internal:5443/ca.crt
    models:
      - name: digits
        version: 1.0.0
        repository: edgeml/models/digits
        digest: sha256:9834876dcfb05cb167a5c24953eba58c4ac89b1adf57f28f2f9d09af107ee8f0
        size: 61440
        p95_ms: 5
        options: {batching: {max_size: 8, max_delay_ms: 2}}
    lock: "{{ lookup('ansible.builtin.file', 'fleet.lock.yml') | from_yaml }}"
    signatures:
      trusted_keys: ["{{ lookup('ansible.builtin.file', 'keys/release.pub') }}"]
      lock_signature: "{{ lookup('ansible.builtin.file', 'fleet.lock.yml.sig') }}"
    configuration:
      listen: {rest: ["127.0.0.1:8000"], grpc: ["127.0.0.1:8001"], metrics: ["127.0.0.1:8002"]}

- name: Go back to the release before
  edgeml.fleet.runtime_release:
    state: previous

- name: Remove the runtime
  edgeml.fleet.runtime_release:
    state: absent
"""

RETURN = r"""
release:
  description: The active release, or in check mode the one that would be.
  returned: success
  type: dict
  sample:
    id: 3b1f9c0d
    image: registry.edgeml.internal:5443/edgeml/runtime@sha256:5f70bf18
    models: [{name: digits, version: 1.0.0, variant: default, digest: "sha256:9834876d", options: {}}]
    settings: {log_level: info}
plan:
  description:
    - What was changed, or in check mode would be.
    - C(action) is C(none), C(start) (nothing ran here before), C(restart) (another release ran), C(repair) (this
      release is committed, and C(faults) says what is wrong with it) or C(remove).
    - C(image) is null if it stays. C(models) and C(settings) hold what differs; C(before) is null for what is new,
      C(after) for what goes. Environment variables and secrets are told by their names and a short fingerprint.
    - C(bytes) are those that the host lacks and fetches from its mirror.
  returned: success
  type: dict
  sample:
    runtime: runtime
    action: restart
    faults: []
    image: null
    models:
      - name: digits
        before: {version: 1.0.0, variant: default, digest: "sha256:9834876d", options: {}}
        after: {version: 1.1.0, variant: default, digest: "sha256:5f70bf18", options: {}}
    settings: [{key: engine.threads, before: 1, after: 2}]
    bytes: {image: 0, models: 61440}
    removed_runtimes: []
gates:
  description:
    - What the candidate was judged by, also if the module fails for it. C(gate) is C(ready), C(golden), C(p50), C(p95),
      C(p99), C(regression), C(errors), C(shadow) or C(memory); C(allowed) is null where anything is. C(shadow) has a
      C(note) with its counts; its C(measured) is null where too few requests came, that of C(regression) where the
      release that serves failed a request (C(note)).
    - Empty if no candidate was tried.
  returned: success, and failure of a gate
  type: list
  elements: dict
  sample: [{gate: p95, model: digits, protocol: grpc, measured: 0.21, allowed: 5.0, unit: ms, passed: true}]
bytes_fetched:
  description:
    - Bytes of models that were fetched from the mirror, or in check mode would be.
    - The engine does not tell how many of an image it fetched.
  returned: success
  type: int
  sample: 61440
what:
  description: What went wrong.
  returned: failure
  type: str
  sample: Port 8000 is already taken
where:
  description: The file, address or path concerned.
  returned: failure
  type: str
  sample: 127.0.0.1:8000
seen:
  description: What was seen there.
  returned: failure
  type: str
  sample: Address already in use
remedy:
  description: What to do next.
  returned: failure
  type: str
  sample: stop the program that listens there
"""

from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.edgeml.fleet.plugins.module_utils._host.engine import DockerEngine, NoEngine
from ansible_collections.edgeml.fleet.plugins.module_utils._module import command_runner, run
from ansible_collections.edgeml.fleet.plugins.module_utils._release.agent import (
    Transaction,
    forget,
    perform,
    release_of,
)
from ansible_collections.edgeml.fleet.plugins.module_utils._release.approval import approve
from ansible_collections.edgeml.fleet.plugins.module_utils._release.options import ARGUMENT_SPEC


def converge(module: AnsibleModule) -> dict[str, Any]:
    """Make the release active, go back to a previous one, or remove the runtime."""
    options = module.params
    root, runtime = Path(options["root"]), options["name"]
    has_engine = module.get_bin_path("docker") is not None
    engine = NoEngine() if module.check_mode and not has_engine else DockerEngine(command_runner(module))
    if options["state"] == "absent":
        result = release_of(options, engine).remove(module.check_mode, has_engine)
        if not module.check_mode:
            forget(root)
        return result
    transaction = Transaction(root, runtime)
    transaction.warn = module.warn
    if not module.check_mode and (earlier := transaction.what_became_of_it()):
        module.warn(earlier)  # also if this run fails: it is told once
    return _converge(module, options, engine, transaction)


def _converge(
    module: AnsibleModule, options: dict[str, Any], engine: DockerEngine, transaction: Transaction
) -> dict[str, Any]:
    if module.check_mode or not transaction.is_running():
        # An unchanged host needs no process of its own.
        result = perform(options, engine, check_mode=True)
        if module.check_mode:
            return result
        if not result["changed"]:
            if options["state"] == "active":
                approve(options, check_mode=False)  # an unchanged release under a newer lock: its serial counts
            return result
    return transaction.run(options)


def main() -> None:
    """Run the module."""
    run(ARGUMENT_SPEC, converge, required_if=[("state", "active", ["image"])])


if __name__ == "__main__":
    main()
