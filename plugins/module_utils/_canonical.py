# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The one way in which values become bytes of which digests are made."""

from __future__ import annotations

import json


def canonical_json(value: object) -> bytes:
    """Return the one UTF-8 encoding of `value` that digests are made of: sorted keys, no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
