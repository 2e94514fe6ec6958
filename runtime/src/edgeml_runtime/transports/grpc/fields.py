# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Which header fields of a request are malformed (RFC 9113, sections 8.2 and 8.3)."""

import re

# Lower-case tokens (RFC 9110, section 5.6.2).
_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9a-z-]+")
_WRONG_IN_VALUES = re.compile(rb"[\0\r\n]")
_OF_CONNECTIONS = frozenset({b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding", b"upgrade"})
_PSEUDO = frozenset({b":method", b":scheme", b":path", b":authority"})
_REQUIRED = (b":method", b":scheme", b":path")


def checked_fields(fields: list[tuple[bytes, bytes]], is_trailer: bool) -> dict[bytes, bytes] | None:
    """The fields by name, repeated ones joined by commas; None when they are malformed."""
    headers: dict[bytes, bytes] = {}
    regular = False
    for name, value in fields:
        if _WRONG_IN_VALUES.search(value) or value != value.strip(b" \t"):
            return None
        if name.startswith(b":"):
            if is_trailer or regular or name not in _PSEUDO or name in headers:
                return None
            headers[name] = value
            continue
        regular = True
        if not _NAME.fullmatch(name) or name in _OF_CONNECTIONS or (name == b"te" and value != b"trailers"):
            return None
        if name == b"content-length" and (not value.isdigit() or name in headers):
            return None
        headers[name] = value if name not in headers else headers[name] + b", " + value
    if not is_trailer and any(not headers.get(name) for name in _REQUIRED):
        return None
    return headers
