#!/usr/bin/python
# Copyright (c) edgeml.fleet contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation of the action package_report, all of which runs on the controller."""

from __future__ import annotations

DOCUMENTATION = r"""
module: package_report
short_description: Show which packages run on which hosts
version_added: 0.2.0
author:
  - edgeml.fleet contributors (@edgeml)
description:
  - Reads the bills of material (SBOM) of the images that a lock names from the store, and tells for each package which
    images hold it and which hosts of the inventory are placed to run them.
  - Writes the bills as CycloneDX 1.6, which scanners for vulnerabilities read. Runs once, on the controller.
options:
  package:
    description: Shell pattern of the packages to show, such as V(libssl*). Debian's and Python's names, in any case.
    type: str
    default: "*"
  lock_file:
    description: The lock.
    type: path
    required: true
  store:
    description: The registry that holds what the lock names, as in O(edgeml.fleet.oci_image#module:registry).
    type: dict
    required: true
  directory:
    description: Directory on the controller for C(IMAGE-ARCHITECTURE.cdx.json) and C(packages.json); none if empty.
    type: path
    default: ""
attributes:
  check_mode:
    description: The report is shown and written as well.
    support: full
  diff_mode:
    description: There is nothing to compare.
    support: none
  idempotent:
    description: No host is changed.
    support: full
seealso:
  - module: edgeml.fleet.oci_image
"""

EXAMPLES = r"""
- name: Show who runs OpenSSL
  edgeml.fleet.package_report:
    package: libssl*
    lock_file: "{{ edgeml_lock_file }}"
    store:
      address: store.example:5000
      username: puller
      password: "{{ store_password }}"
"""

RETURN = r"""
packages:
  description: Each version of each package that was asked for.
  returned: success
  type: list
  elements: dict
  sample:
    - name: libssl3t64
      version: 3.5.4-1~deb13u1
      purl: pkg:deb/debian/libssl3t64@3.5.4-1~deb13u1?distro=trixie
      images: [runtime amd64]
      hosts: [camera-1, camera-2]
files:
  description: The files written.
  returned: success
  type: list
  elements: str
  sample: [build/packages/runtime-amd64.cdx.json, build/packages/packages.json]
"""
