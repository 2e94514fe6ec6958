# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Small real files, one of each kind, equal on every machine. No compressor takes part: their output may change."""

from __future__ import annotations

import hashlib
import json
import struct
import zlib

PYTHON = b'''\
import json
from pathlib import Path


def mean_temperature(path: Path) -> float:
    """Return the mean of the readings in a JSON file, in degrees Celsius."""
    readings = json.loads(path.read_text(encoding="utf-8"))
    if not readings:
        raise ValueError(f"no readings in {path}")
    return sum(reading["celsius"] for reading in readings) / len(readings)


if __name__ == "__main__":
    print(f"{mean_temperature(Path('readings.json')):.1f}")
'''

C = b"""\
#include <stdio.h>
#include <stdlib.h>

/* Mean of the numbers on standard input, one a line. */
int main(void)
{
    double value, sum = 0.0;
    long count = 0;

    while (scanf("%lf", &value) == 1) {
        sum += value;
        count++;
    }
    if (count == 0)
        return EXIT_FAILURE;
    printf("%.3f\\n", sum / count);
    return EXIT_SUCCESS;
}
"""

SHELL = b"""\
#!/bin/sh
# Keep the seven newest logs of every machine.
set -eu

logs=${1:-/var/log/machines}
for machine in "$logs"/*/; do
    ls -1t "$machine" | tail -n +8 | while read -r old; do
        rm -f -- "$machine$old"
    done
done
echo "done: $(date)"
"""

HTML = b"""\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>Press 7</title>
<link rel="stylesheet" href="style.css">
</head>
<body>
<h1>Press 7</h1>
<p>Parts and <a href="rejects.html">rejects</a> of today.</p>
<table>
<tr><th>Shift</th><th>Parts</th><th>Rejects</th></tr>
<tr><td>early</td><td>412</td><td>3</td></tr>
<tr><td>late</td><td>398</td><td>5</td></tr>
</table>
</body>
</html>
"""


def json_file() -> bytes:
    """Return readings of a machine, indented."""
    readings = [{"second": second, "celsius": 20 + second % 7, "alarm": False} for second in range(12)]
    return json.dumps({"site": "berlin", "machine": "press-7", "readings": readings}, indent=2).encode()


def csv_file() -> bytes:
    """Return a header and forty rows of readings."""
    rows = (f"{second},press-{second % 3 + 1},{20 + second % 7},{5 + second % 4}\n" for second in range(40))
    return ("second,machine,celsius,bar\n" + "".join(rows)).encode()


def png_file() -> bytes:
    """Return a colour image of 32 x 32 pixels, stored without compression (PNG 1.2)."""
    rows = b"".join(b"\0" + bytes(value for x in range(32) for value in (x * 8, y * 8, (x ^ y) * 8)) for y in range(32))
    header = struct.pack(">IIBBBBB", 32, 32, 8, 2, 0, 0, 0)
    pixels = b"\x78\x01" + _stored_block(rows) + struct.pack(">I", zlib.adler32(rows))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in ((b"IHDR", header), (b"IDAT", pixels), (b"IEND", b""))
    )


def gzip_file() -> bytes:
    """Return 1024 bytes that cannot be compressed, as gzip stores such (RFC 1952)."""
    data = b"".join(hashlib.sha256(bytes([number])).digest() for number in range(32))
    header = b"\x1f\x8b\x08" + bytes(6) + b"\xff"
    return header + _stored_block(data) + struct.pack("<II", zlib.crc32(data), len(data))


def wav_file() -> bytes:
    """Return a quarter of a second of a saw tooth of 440 Hz, 8000 samples a second, 16 bits, one channel."""
    samples = b"".join(struct.pack("<h", number * 440 * 65536 // 8000 % 65536 - 32768) for number in range(2000))
    form = struct.pack("<IHHIIHH", 16, 1, 1, 8000, 16000, 2, 16)
    body = b"WAVEfmt " + form + b"data" + struct.pack("<I", len(samples)) + samples
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _stored_block(data: bytes) -> bytes:
    """Return one final block of type "stored" (RFC 1951, 3.2.4); `data` is at most 65535 bytes."""
    return b"\x01" + struct.pack("<HH", len(data), len(data) ^ 0xFFFF) + data


SAMPLE_FILES: dict[str, bytes] = {
    "python": PYTHON,
    "c": C,
    "shell": SHELL,
    "html": HTML,
    "json": json_file(),
    "csv": csv_file(),
    "png": png_file(),
    "gzip": gzip_file(),
    "wav": wav_file(),
}
"""Content by the label that a person expects."""
