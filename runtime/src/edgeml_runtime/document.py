# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Strict reading of JSON documents that people write: the first mistake raises ConfigurationError."""

import difflib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Never

from edgeml_runtime.errors import ConfigurationError

_KINDS = {str: "a string", int: "an integer", bool: "true or false", list: "a list", dict: "an object"}


class Reader:
    """Values of one document, checked; ``file`` and the keys are what the errors name."""

    def __init__(self, file: str) -> None:
        self.file = file

    @staticmethod
    def load(file: Path) -> object:
        """The document in a file. Raises ConfigurationError when there is none."""
        try:
            return json.loads(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigurationError(str(file), "", error.strerror or "an error", "a readable JSON file") from None
        except (ValueError, RecursionError) as error:
            raise ConfigurationError(str(file), "", f"text that is no JSON ({error})", "a JSON object") from None

    def mapping(
        self, value: object, key: str, required: Iterable[str] = (), optional: Iterable[str] = ()
    ) -> dict[str, Any]:
        """An object that has all required keys and no unknown one."""
        document: dict[str, Any] = self.typed(value, key or "the document", dict)
        prefix = f"{key}." if key else ""
        known = sorted({*required, *optional})
        for unknown in sorted(document.keys() - set(known)):
            near = difflib.get_close_matches(unknown, known, 1)
            remedy = f"did you mean '{near[0]}'? Correct its name" if near else "remove the key or correct its name"
            self.fail(prefix + unknown, "an unknown key", f"the keys {', '.join(known)}", remedy)
        for missing in sorted(set(required) - document.keys()):
            self.fail(prefix + missing, "no such key", f"the keys {', '.join(known)}", "add the key")
        return document

    def typed(self, value: object, key: str, kind: type) -> Any:
        """A value of exactly that type: a bool is no int."""
        if type(value) is not kind:
            self.fail(key, shown(value), _KINDS[kind])
        return value

    def integer(self, value: object, key: str, low: int, high: int) -> int:
        """An integer from ``low`` to ``high``."""
        if type(value) is not int or not low <= value <= high:
            self.fail(key, shown(value), f"an integer from {low} to {high}")
        return value

    def number(self, value: object, key: str, low: float, high: float) -> float:
        """A number from ``low`` to ``high``."""
        if type(value) not in (int, float) or not low <= value <= high:  # type: ignore[operator]
            self.fail(key, shown(value), f"a number from {low:g} to {high:g}")
        return float(value)  # type: ignore[arg-type]

    def choice(self, value: object, key: str, choices: tuple[str, ...]) -> str:
        """One of the given words."""
        if value not in choices:
            self.fail(key, repr(value), ", ".join(choices))
        return str(value)

    def matching(self, value: object, key: str, pattern: re.Pattern[str], allowed: str) -> str:
        """A string of that form."""
        text: str = self.typed(value, key, str)
        if not pattern.fullmatch(text):
            self.fail(key, repr(text), allowed)
        return text

    def readable(self, value: object, key: str) -> Path:
        """The path of a file that can be read."""
        file = Path(self.typed(value, key, str))
        try:
            file.open("rb").close()
        except OSError as error:
            self.fail(key, f"{str(file)!r} ({error.strerror})", "a readable file")
        return file

    def fail(self, key: str, seen: str, allowed: str, remedy: str = "") -> Never:
        """Raise the error."""
        raise ConfigurationError(self.file, key, seen, allowed, remedy)


def shown(value: object) -> str:
    """A value as JSON, shortened."""
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."
