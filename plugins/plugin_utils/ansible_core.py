# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What older releases of ansible-core do not have, imported in one place: there they are refused in one line."""

from __future__ import annotations

import sys

from ansible.errors import AnsibleError
from ansible.release import __version__

try:
    from ansible.parsing.vault import EncryptedString
    from ansible.template import trust_as_template
except ImportError:
    raise AnsibleError(
        f"edgeml.fleet needs ansible-core 2.19 or newer, {__version__} was seen (Python: {sys.executable}). "
        "Next: install a newer ansible-core, or run in an execution environment that has one."
    ) from None

__all__ = ["EncryptedString", "trust_as_template"]
