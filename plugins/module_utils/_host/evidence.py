# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a converge left on a host, observed once when it succeeded and compared on every later run.

An item of evidence is a mapping with a ``kind`` and what that kind needs:

============= =============================================================================================
``file``      ``path``: content, mode and owner of a file, whether it is there at all
``directory`` ``path``: mode and owner
``files``     ``path``: the same of a directory and of each file in it, with the files' content
``tree``      ``path``: names and sizes of all files below
``line``      ``path``, ``line``: whether a file has this line
``packages``  ``names``: which Debian packages are installed
``kernel``    ``modules``, ``sysctls``: what is loaded, and values
``service``   ``name``: whether systemd runs it, now and at boot
``container`` ``name``: what the engine made it of, and whether it runs
``ready``     ``endpoint``, ``path``, ``status`` (200): whether a server on this host answers a GET so
============= =============================================================================================

Reads only. A host without an engine, dpkg or systemd is no error: the observation says so.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import ssl
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Mapping
from urllib.parse import urlsplit

from ansible_collections.edgeml.fleet.plugins.module_utils._canonical import canonical_json
from ansible_collections.edgeml.fleet.plugins.module_utils._host.command import RunCommand
from ansible_collections.edgeml.fleet.plugins.module_utils._host.unix_http import UnixConnection

Item = Mapping[str, Any]
KINDS = ("file", "directory", "files", "tree", "line", "packages", "kernel", "service", "container", "ready")
READY_SECONDS = 5.0
ABSENT = "absent"
#: What each kind needs besides ``kind``, as text; ``packages`` and ``kernel`` have names.
_NEEDED = {
    **dict.fromkeys(("file", "directory", "files", "tree"), ("path",)),
    "line": ("path", "line"),
    **dict.fromkeys(("service", "container"), ("name",)),
    "ready": ("endpoint", "path"),
}


def observe(items: Sequence[Item], run: RunCommand) -> list[Any]:
    """Return what is seen of each item now: a value that JSON can hold, equal if nothing changed."""
    containers = _containers([item["name"] for item in items if item["kind"] == "container"], run)
    by_kind: dict[str, Callable[[Item], Any]] = {
        "file": lambda item: _file(Path(item["path"])),
        "directory": lambda item: _owner(Path(item["path"])),
        "files": lambda item: _files(Path(item["path"])),
        "tree": lambda item: _tree(Path(item["path"])),
        "line": lambda item: item["line"] in _lines(Path(item["path"])),
        "packages": lambda item: _packages(item["names"], run),
        "kernel": _kernel,
        "service": lambda item: _service(item["name"], run),
        "container": lambda item: containers.get(item["name"], ABSENT),
        "ready": lambda item: answers(item["endpoint"], item["path"], int(item.get("status", 200))),
    }
    return [by_kind[item["kind"]](item) for item in items]


def is_item(item: Item) -> bool:
    """Return whether `observe` can take an item of a known kind, which may come from a damaged file."""
    if item["kind"] == "packages":
        return _are_names(item.get("names"))
    if item["kind"] == "kernel":
        return _are_names(item.get("modules", ())) and _are_names(item.get("sysctls", ()))
    texts = all(isinstance(item.get(key), str) for key in _NEEDED[item["kind"]])
    return texts and str(item.get("status", 200)).isdigit()


def _are_names(value: Any) -> bool:
    return isinstance(value, (list, tuple, dict)) and all(isinstance(name, str) for name in value)


def differences(items: Sequence[Item], before: Sequence[Any], now: Sequence[Any]) -> list[str]:
    """Return one line for each item of which something else is seen `now` than `before`."""
    return [
        f"{item['kind']} {_name(item)} is not as it was: {_short(was)}, now {_short(seen)}"
        for item, was, seen in zip(items, before, now)
        if was != seen
    ]


def _name(item: Item) -> str:
    names = item.get("path") or item.get("name") or item.get("endpoint") or item.get("names") or ""
    return ", ".join(names) if isinstance(names, list) else str(names)


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    return text if len(text) <= 120 else text[:117] + "..."


def _owner(path: Path) -> Any:
    try:
        status = path.lstat()
    except OSError:
        return ABSENT
    return [stat.filemode(status.st_mode), status.st_uid, status.st_gid]


def _file(path: Path) -> Any:
    owner = _owner(path)
    if owner == ABSENT:
        return ABSENT
    try:
        return [*owner, hashlib.sha256(path.read_bytes()).hexdigest()]
    except OSError as error:
        return [*owner, error.strerror]


def _files(directory: Path) -> Any:
    if not directory.is_dir():
        return ABSENT
    return {
        ".": _owner(directory),
        **{path.name: _file(path) for path in sorted(directory.iterdir()) if path.is_file()},
    }


def _tree(root: Path) -> Any:
    if not root.is_dir():
        return ABSENT
    digest = hashlib.sha256()
    for directory, folders, files in os.walk(os.path.realpath(root)):
        folders.sort()
        for name in sorted(files):
            path = os.path.join(directory, name)  # noqa: PTH118 - no object for each of thousands of files
            digest.update(f"{path}\0{os.lstat(path).st_size}\n".encode())
    return digest.hexdigest()


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(errors="replace").splitlines()
    except OSError:
        return []


def _packages(names: Sequence[str], run: RunCommand) -> Any:
    if not names:
        return []
    _code, out, _error = run(
        ["dpkg-query", "--show", "--showformat", "${Package} ${db:Status-Status}\n", *sorted(names)]
    )
    return sorted(line for line in out.splitlines() if line.endswith(" installed"))


def _kernel(item: Item) -> Any:
    swap = str.maketrans("./", "/.")
    seen: dict[str, str | None] = {}
    for name in item.get("sysctls", ()):
        separator = next((character for character in name if character in "./"), ".")
        try:
            text = (Path("/proc/sys") / (name if separator == "/" else name.translate(swap))).read_text()
            seen[name] = " ".join(text.split())
        except OSError:
            seen[name] = None
    modules = {name: (Path("/sys/module") / name.replace("-", "_")).exists() for name in item.get("modules", ())}
    return {"sysctls": seen, "modules": modules}


def _service(name: str, run: RunCommand) -> Any:
    if not Path("/run/systemd/system").is_dir():
        return "no systemd"
    return [run(["systemctl", question, name])[1].strip() for question in ("is-enabled", "is-active")]


def _containers(names: Sequence[str], run: RunCommand) -> dict[str, Any]:
    """Ask for all containers at once: each start of the engine's client costs the host some 30 ms of CPU."""
    if not names:
        return {}
    _code, out, _error = run(["docker", "container", "inspect", *names])
    try:
        found = json.loads(out)
    except ValueError:  # no engine, or it does not answer
        return {}
    seen = {}
    for container in found:
        made_of = [container["Id"], container["Image"], container["Config"], container["HostConfig"]]
        digest = hashlib.sha256(canonical_json(made_of)).hexdigest()
        seen[container["Name"].lstrip("/")] = [digest, "running" if container["State"]["Running"] else "stopped"]
    return seen


def answers(endpoint: str, path: str, status: int) -> bool:
    """Return whether a server on this host answers a GET with a status.

    Its certificate is not checked: whoever uses the server by its name does that.
    """
    parts = urlsplit(endpoint)
    connection: http.client.HTTPConnection
    if parts.scheme == "http+unix":
        connection = UnixConnection(parts.path, timeout=READY_SECONDS)
    elif parts.scheme == "https":
        context = ssl._create_unverified_context()  # noqa: S323 - see above
        connection = http.client.HTTPSConnection(parts.netloc, timeout=READY_SECONDS, context=context)
    else:
        connection = http.client.HTTPConnection(parts.netloc, timeout=READY_SECONDS)
    try:
        connection.request("GET", path, headers={"Host": "localhost"})
        return connection.getresponse().status == status
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
