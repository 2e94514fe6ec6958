# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The sample files of the file type model are real files: what reads such files reads them."""

from __future__ import annotations

import ast
import csv
import gzip
import importlib.util
import io
import json
import struct
import subprocess
import wave
import zlib
from pathlib import Path

import pytest

SAMPLES = Path(__file__).resolve().parents[3] / "models" / "file_type" / "sample_files.py"


@pytest.fixture(scope="module")
def sample_files() -> dict[str, bytes]:
    spec = importlib.util.spec_from_file_location("sample_files", SAMPLES)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    files: dict[str, bytes] = module.SAMPLE_FILES
    return files


def test_python_compiles(sample_files: dict[str, bytes]) -> None:
    assert any(isinstance(node, ast.FunctionDef) for node in ast.parse(sample_files["python"]).body)


def test_shell_parses(sample_files: dict[str, bytes]) -> None:
    subprocess.run(["sh", "-n"], input=sample_files["shell"], check=True, timeout=10)


def test_json_and_csv_hold_readings(sample_files: dict[str, bytes]) -> None:
    assert len(json.loads(sample_files["json"])["readings"]) == 12
    rows = list(csv.DictReader(io.StringIO(sample_files["csv"].decode())))
    assert [row["second"] for row in rows] == [str(second) for second in range(40)]


def test_gzip_unpacks(sample_files: dict[str, bytes]) -> None:
    assert len(gzip.decompress(sample_files["gzip"])) == 1024


def test_wav_lasts_a_quarter_of_a_second(sample_files: dict[str, bytes]) -> None:
    with wave.open(io.BytesIO(sample_files["wav"])) as sound:
        assert sound.getnframes() / sound.getframerate() == 0.25


def test_png_holds_32_rows_of_32_pixels(sample_files: dict[str, bytes]) -> None:
    content = sample_files["png"]
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    position, chunks = 8, {}
    while position < len(content):
        (length,) = struct.unpack_from(">I", content, position)
        kind, data = content[position + 4 : position + 8], content[position + 8 : position + 8 + length]
        assert struct.unpack_from(">I", content, position + 8 + length) == (zlib.crc32(kind + data),)
        chunks[kind] = data
        position += 12 + length
    assert list(chunks) == [b"IHDR", b"IDAT", b"IEND"]
    assert struct.unpack_from(">II", chunks[b"IHDR"]) == (32, 32)
    assert len(zlib.decompress(chunks[b"IDAT"])) == 32 * (1 + 32 * 3)
