# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a release may come to this host: a signed lock names all of it, and is not older than the one before."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._host.files import make_directory, replace_file
from ansible_collections.edgeml.fleet.plugins.module_utils._signature.lock import Trust

#: Below the host's root: the serial of the newest lock that this host has accepted.
ACCEPTED_LOCK = "accepted_lock.json"


def approve(options: Mapping[str, Any], *, check_mode: bool) -> None:
    """Raise FleetError unless a lock that trusted keys have signed names the release that a module's `options` ask for.

    Nothing is asked of the network, the clock or the engine. Without `check_mode` the lock's serial is remembered, and
    older locks are refused from then on.
    """
    trust = Trust.from_options(options["signatures"])
    if trust.keys is None:
        return
    lock = options["lock"]
    if not lock:
        raise FleetError(
            "No lock came with the release",
            where="the option lock",
            seen="nothing",
            remedy="give the content of the signed lock, or set edgeml_signatures: ignored to run what nobody signed",
        )
    trust.check(lock)
    root = Path(options["root"])
    serial, accepted = int(lock["serial"]), accepted_serial(root)
    if serial < accepted and not trust.accept_older_lock:
        raise FleetError(
            "The lock is older than one that this host has accepted",
            where=str(root / ACCEPTED_LOCK),
            seen=f"serial {serial} in the lock, {accepted} accepted",
            remedy="use the newest lock; to go back, publish the older content again under a higher serial, or set "
            "edgeml_accept_older_lock: true for one run",
        )
    _check_image(lock, options["image"])
    for model in options["models"]:
        _check_model(lock, model)
    if not check_mode and serial != accepted:
        make_directory(root)
        replace_file(root / ACCEPTED_LOCK, json.dumps({"serial": serial}).encode())


def accepted_serial(root: Path) -> int:
    """Return the serial of the newest lock that this host has accepted, 0 if there was none."""
    path = root / ACCEPTED_LOCK
    try:
        return int(json.loads(path.read_text())["serial"])
    except FileNotFoundError:
        return 0
    except (OSError, ValueError, LookupError, TypeError, OverflowError, RecursionError) as error:
        raise FleetError(
            "It cannot be read which lock this host has accepted",
            where=str(path),
            seen=str(error),
            remedy="look into the file and the disk; remove the file if the lock is known to be the newest",
        ) from error


def _check_image(lock: Mapping[str, Any], image: str) -> None:
    name, _separator, digest = image.partition("@")
    repository = name.partition("/")[2]
    for entry in lock["images"].values():
        digests = [platform["digest"] for platform in entry["platforms"].values()]
        if entry["repository"] == repository and digest in digests:
            return
    raise FleetError(
        "The signed lock does not name this image",
        where=image,
        seen=f"{len(lock['images'])} other images in the lock with serial {lock['serial']}",
        remedy="converge with the lock that names it; an image that is not in the lock is published first",
    )


def _check_model(lock: Mapping[str, Any], model: Mapping[str, Any]) -> None:
    shown = f"model {model['name']} {model['version']}, variant {model['variant']}"
    versions = lock["models"].get(model["name"], {})
    entry = versions.get(model["version"], {}).get("variants", {}).get(model["variant"])
    if entry is None:
        raise FleetError(
            "The signed lock does not name this model",
            where=shown,
            seen=f"versions {', '.join(sorted(versions)) or 'none'} in the lock with serial {lock['serial']}",
            remedy="publish it, then converge with the new lock",
        )
    told = {key: model[key] for key in ("repository", "digest", "size")}
    signed = {"repository": entry["repository"], "digest": entry["blob"]["digest"], "size": entry["blob"]["size"]}
    if told != signed:
        key = next(key for key in told if told[key] != signed[key])
        raise FleetError(
            "This model is not the one of this name in the signed lock",
            where=shown,
            seen=f"{key} {told[key]} instead of {signed[key]}",
            remedy="find out who changed it, then converge with the lock as it was published",
        )
