#!/usr/bin/python
# Copyright (c) edgeml.fleet contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fetch a model's files from a web server or a registry."""

from __future__ import annotations

DOCUMENTATION = r"""
module: model_source
short_description: Fetch a model's files from a web server or a registry
version_added: 0.1.0
description:
  - Makes a directory hold the files of a model that somebody else made, for M(edgeml.fleet.model_artifact) to pack.
  - What is fetched is named by its digest and verified before it is unpacked. A transfer that broke off goes on where
    it stopped.
author: edgeml.fleet contributors (@edgeml)
requirements:
  - Python 3.11 or newer
attributes:
  check_mode:
    description: Can run in check mode and return changed status without modifying the target.
    support: partial
    details:
      - Fetches as well, since what is made of the files depends on them; the directory is a cache.
  diff_mode:
    description: Will return details on what has changed.
    support: none
  idempotent:
    description: Fetches nothing if the directory exists.
    support: full
options:
  url:
    description:
      - Address of an archive (tar, also compressed by gzip, bzip2 or xz; zip), or of a file whose name ends with
        C(.onnx), which becomes C(model.onnx). C(https), C(http) and C(file).
      - A directory of the archive that holds everything else is left out.
    type: str
  sha256:
    description: SHA-256 of what O(url) gives, 64 hexadecimal digits.
    type: str
  reference:
    description:
      - Model in a registry, C(registry/repository@sha256:<digest of the manifest>). A CNCF ModelPack artifact, or
        another one whose layers are tar archives or files with a name.
    type: str
  directory:
    description: Directory for the files. It appears in one step; work is done beside it.
    type: path
    required: true
  username:
    description: User name at the server or registry.
    type: str
  password:
    description: The user's password.
    type: str
  ca_file:
    description: PEM file of the certificate authorities to trust instead of the system's.
    type: path
"""

EXAMPLES = r"""
- name: Fetch a model from a web server
  edgeml.fleet.model_source:
    url: https://models.example.com/vibration-2.0.1.tar.gz
    sha256: 5d0f8c6f1b1c6b3f4a3e2d1c0b9a8f7e6d5c4b3a291807f6e5d4c3b2a1908f7e
    directory: build/sources/5d0f8c6f1b1c6b3f4a3e2d1c0b9a8f7e6d5c4b3a291807f6e5d4c3b2a1908f7e

- name: Fetch a model from the registry of another team
  edgeml.fleet.model_source:
    reference: "harbor.example.com/vision/scratches@sha256:\
      9c1d0e6bd4f6a4b4ac0f1a2a4c5ba0b6b6a6b27ad5c7dd2c88b2cc4bc3b5d9a1"
    username: reader
    password: "{{ harbor_password }}"
    directory: build/sources/scratches
"""

RETURN = r"""
what:
  description: What went wrong.
  returned: failure
  type: str
  sample: A model's source is not what its sha256 says
where:
  description: The file or address that it concerns.
  returned: failure
  type: str
  sample: https://models.example.com/vibration-2.0.1.tar.gz
seen:
  description: What was seen there.
  returned: failure
  type: str
  sample: sha256 3e2d1c0b9a8f7e6d5c4b3a291807f6e5d4c3b2a1908f7e5d0f8c6f1b1c6b3f4a
remedy:
  description: What to do.
  returned: failure
  type: str
  sample: find out why it changed; only if you trust it, write the new sha256 into the catalogue
"""

from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.edgeml.fleet.plugins.module_utils._model.source import fetch_artifact, fetch_url
from ansible_collections.edgeml.fleet.plugins.module_utils._module import run
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.names import split_reference
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.registry import Registry

ARGUMENT_SPEC: dict[str, Any] = {
    "url": {"type": "str"},
    "sha256": {"type": "str"},
    "reference": {"type": "str"},
    "directory": {"type": "path", "required": True},
    "username": {"type": "str"},
    "password": {"type": "str", "no_log": True},
    "ca_file": {"type": "path"},
}


def fetch(module: AnsibleModule) -> dict[str, Any]:
    """Fetch the model's files if the directory does not hold them."""
    options = module.params
    directory = Path(options["directory"])
    access: dict[str, Any] = {key: options[key] or "" for key in ("username", "password", "ca_file")}
    if options["url"]:
        return {"changed": fetch_url(options["url"], options["sha256"], directory, **access)}
    address, repository, digest = split_reference(options["reference"], "reference")
    return {"changed": fetch_artifact(Registry(address, **access), repository, digest, directory)}


def main() -> None:
    """Run the module."""
    run(
        ARGUMENT_SPEC,
        fetch,
        required_one_of=[("url", "reference")],
        mutually_exclusive=[("url", "reference")],
        required_together=[("url", "sha256"), ("username", "password")],
    )


if __name__ == "__main__":
    main()
