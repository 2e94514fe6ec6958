# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Verification of signatures by the OpenSSL library that Python's own TLS stands on.

Python's standard library verifies no signature, and a target need not have the program ``openssl``. But it has the
library, since it fetches over TLS.
"""

from __future__ import annotations

import ctypes
import functools
from ctypes import POINTER, c_char_p, c_int, c_long, c_size_t, c_void_p
from typing import Any

from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError

# Functions of OpenSSL 1.1.1 and newer: result and arguments.
FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {
    "d2i_PUBKEY": (c_void_p, [c_void_p, POINTER(c_char_p), c_long]),
    "EVP_PKEY_free": (None, [c_void_p]),
    "EVP_MD_CTX_new": (c_void_p, []),
    "EVP_MD_CTX_free": (None, [c_void_p]),
    "EVP_sha256": (c_void_p, []),
    "EVP_DigestVerifyInit": (c_int, [c_void_p, c_void_p, c_void_p, c_void_p, c_void_p]),
    "EVP_DigestVerify": (c_int, [c_void_p, c_char_p, c_size_t, c_char_p, c_size_t]),
    "ERR_clear_error": (None, []),
}


def is_signed(public_key: bytes, message: bytes, signature: bytes, *, sha256: bool) -> bool:
    """Return whether `signature` is that of `message` by a public key (SubjectPublicKeyInfo in DER).

    Parameters
    ----------
    sha256 : bool
        Whether the SHA-256 digest of the message is signed, as by ECDSA; Ed25519 signs the message itself.

    Raises
    ------
    FleetError
        The key cannot be used, or this Python has no OpenSSL that can be called.
    """
    library = _library()
    start = c_char_p(public_key)
    key = library.d2i_PUBKEY(None, ctypes.byref(start), len(public_key))
    context = library.EVP_MD_CTX_new()
    try:
        if not key:
            raise FleetError(
                "A trusted key cannot be used",
                where="edgeml_trusted_keys",
                seen="a point that is not on the curve, or a kind of key that this host's OpenSSL does not know",
                remedy="give the public key again, as openssl pkey -pubout writes it",
            )
        digest = library.EVP_sha256() if sha256 else None
        return bool(
            context
            and library.EVP_DigestVerifyInit(context, None, digest, None, key) == 1
            and library.EVP_DigestVerify(context, signature, len(signature), message, len(message)) == 1
        )
    finally:
        library.EVP_MD_CTX_free(context)
        library.EVP_PKEY_free(key)
        library.ERR_clear_error()  # Python's TLS would take what is left there for an error of its own


@functools.lru_cache(maxsize=1)
def _library() -> Any:
    try:
        import _ssl

        library = ctypes.CDLL(getattr(_ssl, "__file__", None))
        for name, (result, arguments) in FUNCTIONS.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
    except (ImportError, OSError, AttributeError) as error:
        raise FleetError(
            "This host's Python cannot verify signatures",
            where="the module ssl",
            seen=str(error),
            remedy="let ansible_python_interpreter be the system's Python, whose module ssl is linked with OpenSSL "
            "1.1.1 or newer",
        ) from error
    return library
