#!/usr/bin/python
# Copyright (c) edgeml.fleet contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Publish a model in an OCI registry."""

from __future__ import annotations

DOCUMENTATION = r"""
module: model_artifact
short_description: Publish a model in an OCI registry
version_added: 0.1.0
description:
  - Packs a model directory, and a C(model.json) made of the options, into one tar that depends on nothing but the
    content, and pushes it once under two manifests.
  - The first is a CNCF ModelPack manifest, tagged with the version. The second, tagged with the version and C(-image),
    is an image index with one small image for each architecture, for hosts that have nothing but a container engine.
  - The result is the model's entry in C(fleet.lock.yml).
author: edgeml.fleet contributors (@edgeml)
requirements:
  - Python 3.11 or newer
extends_documentation_fragment:
  - edgeml.fleet.registry
attributes:
  check_mode:
    description: Can run in check mode and return changed status without modifying the target.
    support: full
    details:
      - Predicts the entry of the lock also while the registry cannot be reached, with a warning.
  diff_mode:
    description: Returns the digests behind the two tags before and after.
    support: full
  idempotent:
    description: Sends nothing if the registry holds the same content under both tags.
    support: full
options:
  source:
    description:
      - Directory whose whole content becomes the model. It holds regular files and directories only.
      - Directories C(__pycache__) are left out.
      - V(python) and V(pipeline) need a file C(serving.json) that declares inputs and outputs.
    type: path
    required: true
  name:
    description: Name under which clients ask for the model. Lower-case letters and digits, with C(. _ -) between them.
    type: str
    required: true
  version:
    description: Three-part version such as V("1.4.0"), quoted. Numbers are refused.
    type: raw
    required: true
  platform:
    description:
      - Platform of the Open Inference Protocol that loads the file.
      - V(onnxruntime_onnx) is an ONNX file, V(python) code with C(infer), V(pipeline) steps of both. Other servers have
        names of their own.
    type: str
    default: onnxruntime_onnx
  file:
    description:
      - The file in O(source) that the platform loads.
      - If omitted, C(model.onnx), C(model.py) or C(serving.json), as O(platform) says; with another platform, none is
        named.
    type: str
  variant:
    description: Which one of several forms in O(source) is published.
    type: dict
    suboptions:
      name:
        description: Name of the variant. It ends the tags, C(1.4.0-int8) and C(1.4.0-int8-image).
        type: str
        required: true
      file:
        description:
          - The variant's file in O(source). It becomes C(model.onnx), or C(model) with its own suffix.
          - Omit it if O(source) holds this variant alone.
        type: str
      others:
        description: Files of the other variants, which are left out.
        type: list
        elements: str
        default: []
  golden:
    description: Directory that becomes C(golden) in the model, if O(source) holds none.
    type: path
  trial:
    description:
      - Try the model before it is published, in the runtime that will serve it - it loads, and its golden cases are
        answered over REST and gRPC. Nothing is pushed unless it does.
      - The image is unpacked and started on the host that runs the module, without a container engine. An image of
        another server than the collection's runtime is not started.
      - Golden cases are read and checked for their form in any case.
    type: dict
    suboptions:
      image:
        description: The runtime's image in the same registry, C(REPOSITORY@sha256:DIGEST) of its index.
        type: str
        required: true
      cache:
        description: Directory of the module M(edgeml.fleet.oci_image) for what is fetched and unpacked.
        type: path
        required: true
      limits:
        description: Limits of the runtime's configuration on the devices.
        type: dict
        default: {}
  repository:
    description: Repository in the registry.
    type: str
    required: true
  architectures:
    description: Architectures that get an image, named as in OCI.
    type: list
    elements: str
    choices: [amd64, arm64]
    default: [amd64, arm64]
"""

EXAMPLES = r"""
- name: Publish the digits classifier
  edgeml.fleet.model_artifact:
    source: models/digits
    name: digits
    version: "1.0.0"
    repository: edgeml/models/digits
    registry:
      address: store.edgeml.internal:5000
      username: publisher
      password: "{{ store_password }}"
      ca_file: /etc/edgeml/tls/ca.crt
  register: digits
"""

RETURN = r"""
repository:
  description: Repository in the registry.
  returned: success
  type: str
  sample: edgeml/models/digits
digest:
  description: Digest of the ModelPack manifest.
  returned: success
  type: str
  sample: sha256:9c1d0e6bd4f6a4b4ac0f1a2a4c5ba0b6b6a6b27ad5c7dd2c88b2cc4bc3b5d9a1
index:
  description: Digest of the image index.
  returned: success
  type: str
  sample: sha256:1f4e2c5ab0c3d19f0e7b8a6d5c4b3a29181706f5e4d3c2b1a09f8e7d6c5b4a39
platforms:
  description: Digest of each architecture's image manifest, and the bytes of manifest, configuration and layer.
  returned: success
  type: dict
  sample:
    amd64: {digest: "sha256:5d0f8c6f1b1c6b3f4a3e2d1c0b9a8f7e6d5c4b3a291807f6e5d4c3b2a1908f7e", size: 58731}
    arm64: {digest: "sha256:7b9a1c3d5e7f90123456789abcdef0123456789abcdef0123456789abcdef012", size: 58731}
blob:
  description: Digest and bytes of the model's tar.
  returned: success
  type: dict
  sample: {digest: "sha256:3e2d1c0b9a8f7e6d5c4b3a291807f6e5d4c3b2a1908f7e5d0f8c6f1b1c6b3f4a", size: 58368}
golden_cases:
  description: Number of golden cases in the model, that is of files C(golden/*.json).
  returned: success
  type: int
  sample: 10
untried:
  description: Why the model was not tried; empty if it was, or was before.
  returned: success
  type: str
  sample: ""
what:
  description: What went wrong.
  returned: failure
  type: str
  sample: The registry refused the user name and password
where:
  description: The file or address that it concerns.
  returned: failure
  type: str
  sample: https://store.edgeml.internal:5000/v2/edgeml/models/digits/manifests/1.0.0
seen:
  description: What was seen there.
  returned: failure
  type: str
  sample: HTTP 401, user name publisher
remedy:
  description: What to do.
  returned: failure
  type: str
  sample: correct the user name or the password
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._model.artifact import describe_model, push_model
from ansible_collections.edgeml.fleet.plugins.module_utils._model.files import DEFAULT_FILES, Model, Variant
from ansible_collections.edgeml.fleet.plugins.module_utils._module import run
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.registry import REGISTRY_ARGUMENT, Registry
from ansible_collections.edgeml.fleet.plugins.module_utils._trial.trial import (
    check_golden,
    check_version_is_free,
    try_before_publication,
)

ARGUMENT_SPEC: dict[str, Any] = {
    "source": {"type": "path", "required": True},
    "name": {"type": "str", "required": True},
    "version": {"type": "raw", "required": True},
    "platform": {"type": "str", "default": "onnxruntime_onnx"},
    "file": {"type": "str"},
    "variant": {
        "type": "dict",
        "options": {
            "name": {"type": "str", "required": True},
            "file": {"type": "str"},
            "others": {"type": "list", "elements": "str", "default": []},
        },
    },
    "golden": {"type": "path"},
    "trial": {
        "type": "dict",
        "options": {
            "image": {"type": "str", "required": True},
            "cache": {"type": "path", "required": True},
            "limits": {"type": "dict", "default": {}},
        },
    },
    "repository": {"type": "str", "required": True},
    "registry": REGISTRY_ARGUMENT,
    "architectures": {
        "type": "list",
        "elements": "str",
        "choices": ["amd64", "arm64"],
        "default": ["amd64", "arm64"],
    },
}


def publish(module: AnsibleModule) -> dict[str, Any]:
    """Send the model's artifact, or in check mode say what would be sent."""
    options = module.params
    variant = options["variant"]
    model = Model(
        options["name"],
        options["version"],
        options["platform"],
        Path(options["source"]),
        options["file"] or DEFAULT_FILES.get(options["platform"], ""),
        Variant(variant["name"], variant["file"] or "", tuple(variant["others"])) if variant else None,
        Path(options["golden"]) if options["golden"] else None,
    )
    send = not module.check_mode
    entry, content = describe_model(model, options["architectures"], options["repository"])
    check_golden(model)
    try:
        registry = Registry.from_options(options["registry"], patient=send)
        changed, before = push_model(model, entry, content, registry, send=False)
    except FleetError as error:
        if send:
            raise
        module.warn(f"What the registry lacks is not known. {error}")
        changed, before = True, {}
    check_version_is_free(model, entry, before.get(model.tag))
    untried = try_before_publication(
        model, entry["digest"], options["trial"], options["registry"], check_mode=module.check_mode
    )
    if send:
        push_model(model, entry, content, registry, send=True)
    after = {model.tag: entry["digest"], f"{model.tag}-image": entry["index"]}
    return {"changed": changed, "diff": {"before": _lines(before), "after": _lines(after)}, "untried": untried, **entry}


def _lines(tags: Mapping[str, str | None]) -> str:
    return "".join(f"{tag}: {digest}\n" for tag, digest in tags.items() if digest)


def main() -> None:
    """Run the module."""
    run(ARGUMENT_SPEC, publish)


if __name__ == "__main__":
    main()
