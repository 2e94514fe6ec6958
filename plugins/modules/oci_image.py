#!/usr/bin/python
# Copyright (c) edgeml.fleet contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Assemble a container image from a recipe and push it."""

from __future__ import annotations

DOCUMENTATION = r"""
module: oci_image
short_description: Assemble a container image without a container engine
version_added: 0.1.0
author:
  - edgeml.fleet contributors (@edgeml)
description:
  - Makes an OCI image for several architectures from Debian packages, hash-locked Python wheels and files, and pushes
    it to a registry or writes it to a file for C(docker load).
  - Needs neither Docker nor emulation nor root, because nothing of the image is installed or executed for a foreign
    architecture.
  - The same inputs give the same digests, on any machine with the same zlib. What was built before is found in the
    cache; Debian packages newer than those in the cache are taken only with O(rebuild=true) or a changed recipe.
  - Layers are V(base), V(python), V(flavour) and V(files). They are compressed with gzip, which every Docker Engine
    reads.
  - Or copies a finished image from another registry, with all its digests.
requirements:
  - The programs mmdebstrap and dpkg-deb, unless O(base_image) is given.
  - The Python library packaging, and pip or venv, for images with Python. The Python that runs Ansible has them, see
    C(ansible_playbook_python).
attributes:
  check_mode:
    support: partial
    description: Can check the registry and the archive.
    details:
      - Predicts also while the registry cannot be reached, with a warning.
      - Nothing is built, pushed or written; only a base image's content may be fetched into the cache. An image that is
        not in the cache counts as changed, without digests.
  diff_mode:
    support: none
    description: Will return details on what has changed.
  idempotent:
    support: full
    description: When run twice in a row with the same arguments, the second call changes nothing.
options:
  recipe:
    description:
      - The content of the image. Unknown keys are refused.
      - RV(ignore:base) is a mapping of C(suite), C(packages) (exactly the Debian packages whose files are in the image;
        dependencies are not followed), C(remove) and C(keep) (path patterns; what is kept wins), C(users) (list of
        C(name), C(uid), C(gid), C(home)) and C(mirror) (address of a Debian mirror; by default that of mmdebstrap).
      - RV(ignore:python) is a mapping of C(version), C(requirements) (a lock file with hashes, below O(source_root)),
        C(target) (directory in the image for C(PYTHONPATH)), C(exclude) (distribution to the reason why it is left
        out) and C(remove) (path patterns below the target).
      - RV(ignore:files) is a list of C(source) (file or directory below O(source_root)) and C(target). Directories
        C(tests) and C(__pycache__) are left out.
      - RV(ignore:config) is a mapping of C(user) (numeric), C(entrypoint), C(command), C(environment),
        C(exposed_ports), C(labels) and C(working_directory).
      - In path patterns C(*) stays within one name, C(**) does not, a pattern without C(/) matches a name anywhere,
        and what matches a directory matches all that is in it.
    type: dict
  image:
    description:
      - Copy this image, C(registry/repository@sha256:<digest of the index>), instead of assembling one. It must have
        all O(architectures).
    type: str
  requirements:
    description:
      - Further lock files with hashes. Each makes one more layer, of the distributions that the layers below have not.
    type: list
    elements: path
    default: []
  source_root:
    description: Directory where relative paths of the recipe begin.
    type: path
  architectures:
    description: Architectures of the image, as OCI names them.
    type: list
    elements: str
    choices: [amd64, arm64]
    default: [amd64, arm64]
  cache:
    description: Directory for layers that were built. Builds in the same directory wait for each other.
    type: path
    required: true
  rebuild:
    description: Build all layers again, with the newest Debian packages of the suite.
    type: bool
    default: false
  base_image:
    description:
      - Build upon this image, C(registry/repository@sha256:<digest of the index>), instead of the recipe's Debian
        packages. It must have all O(architectures), and Python of the recipe's version if the recipe has Python.
    type: str
  base_username:
    description: User name for the registry of O(base_image) or O(image).
    type: str
  base_password:
    description: Password for the registry of O(base_image) or O(image).
    type: str
  base_ca_file:
    description: PEM file of the certificate authorities to trust for the registry of O(base_image) or O(image).
    type: path
  registry:
    description: Registry to push the image to.
    type: dict
    suboptions:
      address:
        description: Host and optional port.
        type: str
        required: true
      username:
        description: User name.
        type: str
      password:
        description: Password.
        type: str
      ca_file:
        description: PEM file of the certificate authorities to trust instead of the system's.
        type: path
      ca_certificate:
        description: Text of the PEM file, instead of O(registry.ca_file).
        type: str
      ip_address:
        description: Where to connect to, if no name service knows the name in O(registry.address).
        type: str
      client_certificate:
        description: Text of the PEM file of a certificate to present, where the registry asks its clients for one.
        type: str
      client_key:
        description: Text of the PEM file of its key.
        type: str
  repository:
    description: Repository that the image is pushed to.
    type: str
  mount_from:
    description: Repositories of the same registry that may hold layers of the image already; these are not sent.
    type: list
    elements: str
    default: []
  tag:
    description: Tag that the image index gets in O(repository).
    type: str
    default: latest
  archive:
    description: File to write for C(docker load), for one architecture.
    type: dict
    suboptions:
      path:
        description: Path of the file, in a directory that exists.
        type: path
        required: true
      architecture:
        description: One of O(architectures).
        type: str
        choices: [amd64, arm64]
        required: true
      name:
        description: Name that the engine gives the image, C(repository:tag). Without it, it has its ID only.
        type: str
"""

EXAMPLES = r"""
- name: Publish the runtime image for both architectures
  edgeml.fleet.oci_image:
    recipe: "{{ lookup('ansible.builtin.file', '../runtime/image/image.yml') | from_yaml }}"
    source_root: "{{ playbook_dir }}/.."
    cache: "{{ playbook_dir }}/../build/images"
    registry:
      address: store.edgeml.internal:5000
      username: publisher
      password: "{{ store_password }}"
      ca_file: /etc/edgeml/ca.crt
    repository: edgeml/runtime
    tag: 0.1.0
  register: runtime

- name: Write the image of a registry for an engine that has none yet
  edgeml.fleet.oci_image:
    recipe:
      base:
        suite: trixie
        packages: [base-files, docker-registry, libc6]
      config:
        user: "65532:65532"
        entrypoint: [/usr/bin/docker-registry]
        command: [serve, /etc/edgeml/registry.yml]
    architectures: [amd64]
    cache: /var/cache/edgeml/images
    archive:
      path: /var/cache/edgeml/registry.tar
      architecture: amd64
      name: edgeml/model-store:local
"""

RETURN = r"""
image:
  description: The image's entry in fleet.lock.yml; sizes are bytes of manifest, configuration and layers.
  returned: success, unless in check mode when the image is not in the cache
  type: dict
  sample:
    repository: edgeml/runtime
    digest: sha256:4a5b6c7d8e9f4a5b6c7d8e9f4a5b6c7d8e9f4a5b6c7d8e9f4a5b6c7d8e9f4a5b
    platforms:
      amd64:
        digest: sha256:0a1b2c3d4e5f0a1b2c3d4e5f0a1b2c3d4e5f0a1b2c3d4e5f0a1b2c3d4e5f0a1b
        size: 51234567
image_ids:
  description: Digest of the image's configuration by architecture, which is the image's ID in a Docker Engine.
  returned: as RV(image), unless O(image) is copied
  type: dict
  sample:
    amd64: sha256:1a2b3c4d5e6f1a2b3c4d5e6f1a2b3c4d5e6f1a2b3c4d5e6f1a2b3c4d5e6f1a2b
layers:
  description: The layers by architecture, lowest first; sizes in bytes, RV(ignore:uncompressed_size) null if unknown.
  returned: as RV(image), unless O(image) is copied
  type: dict
  sample:
    amd64:
      - purpose: base
        digest: sha256:9f8e7d6c5b4a9f8e7d6c5b4a9f8e7d6c5b4a9f8e7d6c5b4a9f8e7d6c5b4a9f8e
        size: 14123456
        uncompressed_size: 38123456
packages:
  description: Versions of the Debian packages and Python distributions in the image, by architecture.
  returned: as RV(image), unless O(image) is copied
  type: dict
  sample:
    amd64:
      libc6: 2.41-12
      numpy: 2.4.6
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.edgeml.fleet.plugins.module_utils._image.task import assemble_and_deliver
from ansible_collections.edgeml.fleet.plugins.module_utils._module import run
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.registry import REGISTRY_ARGUMENT

ARCHITECTURES = ["amd64", "arm64"]
ARGUMENT_SPEC: dict[str, Any] = {
    "recipe": {"type": "dict"},
    "image": {"type": "str"},
    "requirements": {"type": "list", "elements": "path", "default": []},
    "source_root": {"type": "path"},
    "architectures": {"type": "list", "elements": "str", "choices": ARCHITECTURES, "default": ARCHITECTURES},
    "cache": {"type": "path", "required": True},
    "rebuild": {"type": "bool", "default": False},
    "base_image": {"type": "str"},
    "base_username": {"type": "str"},
    "base_password": {"type": "str", "no_log": True},
    "base_ca_file": {"type": "path"},
    "registry": {**REGISTRY_ARGUMENT, "required": False},
    "repository": {"type": "str"},
    "mount_from": {"type": "list", "elements": "str", "default": []},
    "tag": {"type": "str", "default": "latest"},
    "archive": {
        "type": "dict",
        "options": {
            "path": {"type": "path", "required": True},
            "architecture": {"type": "str", "choices": ARCHITECTURES, "required": True},
            "name": {"type": "str"},
        },
    },
}


def deliver(module: AnsibleModule) -> dict[str, Any]:
    """Assemble or copy the image, and deliver it."""
    return assemble_and_deliver(module.params, check_mode=module.check_mode, warn=module.warn)


def main() -> None:
    """Run the module."""
    run(
        ARGUMENT_SPEC,
        deliver,
        required_one_of=[("registry", "archive"), ("recipe", "image")],
        mutually_exclusive=[("recipe", "image"), ("base_image", "image"), ("archive", "image")],
        required_together=[("registry", "repository"), ("base_username", "base_password")],
    )


if __name__ == "__main__":
    main()
