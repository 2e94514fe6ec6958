# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who says whether the next wave may begin: nobody, the person at the terminal, a file or a server."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible.module_utils.urls import open_url

POLL_SECONDS = 5.0
_LONGEST = 200  # bytes of an answer
_TIMEOUT = 10


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
) -> Answer:
    """Return the answer for a wave. `prompt` asks the person at the terminal."""
    if approval == "none":
        return Answer(True)
    if isinstance(approval, str):
        said = prompt(f"Rollout {rollout}: begin wave {wave}? Type yes to go on: ")
        return Answer(_is_yes(said), "the prompt", said or "nothing")
    deadline = clock() + float(approval.get("wait_seconds", 0))
    while True:
        answer = _look(approval, rollout, wave)
        left = deadline - clock()
        if answer.yes or left <= 0:
            return answer
        sleep(min(POLL_SECONDS, left))


def _look(approval: Mapping[str, Any], rollout: str, wave: int) -> Answer:
    where = str(approval.get("file") or approval["url"]).replace("{rollout}", rollout).replace("{wave}", str(wave))
    try:
        if "file" in approval:
            with Path(where).open("rb") as file:
                said = file.read(_LONGEST)
        else:
            with open_url(where, timeout=_TIMEOUT, ca_path=approval.get("ca_file"), follow_redirects="safe") as answer:
                said = answer.read(_LONGEST)
    except (OSError, ValueError) as error:  # urllib's errors are OSError, or ValueError for an address that is none
        return Answer(False, where, str(error))
    text = said.decode("utf-8", "replace")
    return Answer(_is_yes(text), where, " ".join(text.split()) or "nothing")


def _is_yes(text: str) -> bool:
    return text.split()[:1] != [] and text.split()[0].lower() == "yes"
