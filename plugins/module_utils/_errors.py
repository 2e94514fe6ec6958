# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The one exception of this collection: says what, where, what was seen and what to do."""

from __future__ import annotations


class FleetError(Exception):
    """A failure that a person can act on.

    Parameters
    ----------
    what : str
        What went wrong, one clause without a full stop.
    where : str
        The file, host, address, variable or path that it concerns.
    seen : str
        The value or answer that was seen. Never a secret.
    remedy : str
        What the reader should do next.
    """

    def __init__(self, what: str, *, where: str = "", seen: str = "", remedy: str = "") -> None:
        self.what = what
        self.where = where
        self.seen = seen
        self.remedy = remedy
        super().__init__(str(self))

    def __str__(self) -> str:
        text = self.what
        if self.where:
            text += f" at {self.where}"
        text += "."
        if self.seen:
            text += f" Seen: {self.seen}."
        if self.remedy:
            text += f" What to do: {self.remedy}."
        return text

    def as_mapping(self) -> dict[str, str]:
        """Return the parts of the message: what passes between programs stays apart until it is shown."""
        return {"what": self.what, "where": self.where, "seen": self.seen, "remedy": self.remedy}

    def as_result(self) -> dict[str, str]:
        """Return keys for a module's failed result (see RETURN of each module)."""
        return {"msg": str(self), **self.as_mapping()}
