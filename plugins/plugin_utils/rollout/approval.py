# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who says whether the next wave may begin: nobody, the person at the terminal, a file or a server."""

from __future__ import annotations

import codecs
import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urljoin, urlsplit

from ansible.module_utils.urls import open_url

POLL_SECONDS = 5.0
_LONGEST = 200  # bytes of an answer
_TIMEOUT = 10  # seconds for the whole of it
_REDIRECTS = 5
_REDIRECT_CODES = (301, 302, 303, 307, 308)


@dataclass(frozen=True)
class Answer:
    """`yes`, and what was seen where, for the message of a no."""

    yes: bool
    where: str = ""
    seen: str = ""


def ask(
    approval: str | Mapping[str, Any],
    rollout: str,
    wave: int,
    prompt: Callable[[str], str],
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
    longest: float = math.inf,
) -> Answer:
    """Return the answer for a wave. `prompt` asks the person at the terminal. Waiting ends after `longest` seconds."""
    if approval == "none":
        return Answer(True)
    if isinstance(approval, str):
        said = prompt(f"Rollout {rollout}: begin wave {wave}? Type yes to go on: ")
        return Answer(_is_yes(said), "the prompt", said or "nothing")
    deadline = clock() + min(float(approval.get("wait_seconds", 0)), longest)
    while True:
        answer = _look(approval, rollout, wave)
        left = deadline - clock()
        if answer.yes or left <= 0:
            return answer
        sleep(min(POLL_SECONDS, left))


def _look(approval: Mapping[str, Any], rollout: str, wave: int) -> Answer:
    """Return what is said there now. A server, or a file system, that does not end its answer says nothing."""
    where = str(approval.get("file") or approval["url"]).replace("{rollout}", rollout).replace("{wave}", str(wave))
    found: list[str | Exception] = []

    def look() -> None:
        try:
            said = _read_file(where) if "file" in approval else _read_url(where, approval.get("ca_file"))
            found.append(_text(said))
        except Exception as error:  # whatever is wrong with an answer, it is no yes
            found.append(error)

    # Timeouts of a socket are for each read. Nothing else ends one that gives a byte now and then.
    looking = threading.Thread(target=look, daemon=True)
    looking.start()
    looking.join(_TIMEOUT)
    said = found[0] if found else TimeoutError(f"no whole answer in {_TIMEOUT:g} s")
    seen = said if isinstance(said, str) else str(said) or type(said).__name__
    shown, secrets = (where, []) if "file" in approval else _without_secrets(where)
    for secret in secrets:
        seen = seen.replace(secret, "***")
    return Answer(isinstance(said, str) and _is_yes(said), shown, seen or "nothing")


def _without_secrets(url: str) -> tuple[str, list[str]]:
    """Return scheme, host and path of an address, and what else is in it, perhaps a password or a token."""
    parts = urlsplit(url)
    login, _at, host = parts.netloc.rpartition("@")
    return f"{parts.scheme}://{host}{parts.path}", [text for text in (login, parts.query, parts.fragment) if text]


def _read_file(path: str) -> bytes:
    with Path(path).expanduser().open("rb") as file:
        return file.read(_LONGEST)


def _read_url(url: str, ca_file: str | None) -> bytes:
    """Return the answer of a server; whoever it redirects to must prove who it is too."""
    ca_path = str(Path(ca_file).expanduser()) if ca_file else None
    for _ in range(_REDIRECTS):
        try:
            with open_url(url, timeout=_TIMEOUT, ca_path=ca_path, follow_redirects="none") as answer:
                said: bytes = answer.read(_LONGEST)
                return said
        except HTTPError as error:
            target = error.headers.get("Location") if error.code in _REDIRECT_CODES else None
            if not target:
                raise
        url = urljoin(url, target)
        if not url.lower().startswith("https://"):
            raise ValueError("it redirects to an address that does not begin with https://")
    raise ValueError("it redirects without end")


def _text(said: bytes) -> str:
    """Return an answer in one line, without a mark of its encoding; what nobody would see in it is escaped."""
    encoding = "utf-16" if said.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    line = " ".join(said.decode(encoding, "replace").split())
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in line)


def _is_yes(text: str) -> bool:
    return text.split()[:1] != [] and text.split()[0].lower() == "yes"
