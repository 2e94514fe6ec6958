# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the collection runs on the controller. An ansible-core that is too old is refused before any part is read.

This and ansible_core.py are all that the Python of an older ansible-core has to understand.
"""

from __future__ import annotations

from ansible.errors import AnsibleError
from ansible.release import __version__
from ansible_collections.edgeml.fleet.plugins.plugin_utils.ansible_core import refusal

if refused := refusal(__version__):
    raise AnsibleError(refused)
