# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What hosts tell of their releases, in the shape of the module runtime_release_info."""

from __future__ import annotations

from typing import Any


def release(name: str) -> dict[str, Any]:
    """Return a release of the model digits 1.0.0; its id is the name 20 times."""
    model = {"name": "digits", "version": "1.0.0", "variant": "default", "digest": "sha256:0", "options": {}}
    return {"id": name * 20, "image": "image", "models": [model], "settings": {}}


def told(active: str, *entries: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Return the answer of a host that serves a release, with entries of its history, and `more` of its runtime."""
    runtime = {"name": "runtime", "active": release(active), "serving": True, "drift": [], "history": list(entries)}
    return {"runtimes": [{**runtime, **more}]}
