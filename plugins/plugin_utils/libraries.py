# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What to say when the controller lacks a Python library; meta/ee-requirements.txt names all that it needs."""

from __future__ import annotations

import sys

from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError


def missing_library(error: ImportError) -> FleetError:
    """Return the exception that names the library whose import failed with `error`."""
    return FleetError(
        f"The controller lacks the Python library {error.name}",
        where=sys.executable,
        seen=str(error),
        remedy="install what meta/ee-requirements.txt of the collection names, for the Python that runs Ansible",
    )
