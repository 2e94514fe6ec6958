# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Whether this processor can run numpy and ONNX Runtime, which die of SIGILL without a word where it cannot.

On amd64 they are built for x86-64-v2 (from about 2009 on). Needs the standard library alone, and is asked first.
"""

import ctypes
import platform

# Bits of CPUID leaf 1, register ECX, that x86-64-v2 adds to the first 64-bit processors.
_NEEDED = {"SSE3": 0, "SSSE3": 9, "CMPXCHG16B": 13, "SSE4.1": 19, "SSE4.2": 20, "POPCNT": 23}


def missing_features() -> list[str]:
    """What this processor lacks of x86-64-v2; nothing on another architecture, or where the C library cannot tell."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return []
    try:
        leaf = ctypes.CDLL(None).__x86_get_cpuid_feature_leaf  # glibc 2.33 or newer
    except (AttributeError, OSError):
        return []
    leaf.argtypes = [ctypes.c_uint]
    leaf.restype = ctypes.POINTER(ctypes.c_uint32 * 4)
    ecx = leaf(0).contents[2]
    return [name for name, bit in _NEEDED.items() if not ecx >> bit & 1]
