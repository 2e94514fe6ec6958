# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A model's files from a web server or a registry: resumed, verified, unpacked; and what is refused."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._model.source import fetch_artifact, fetch_url
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.names import IMAGE_MANIFEST, MODEL_FILEPATH, descriptor
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.names import sha256_digest as digest_of
from ansible_collections.edgeml.fleet.tests.support.registry_server import Answer, Request, Server

Serve = Callable[[Callable[[Request], Answer]], Server]
FILES = {"model.onnx": b"weights" * 50_000, "golden/seven.json": b"{}"}


def tar(files: dict[str, bytes], mode: str = "w") -> bytes:
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode=mode) as archive:  # type: ignore[call-overload]
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return output.getvalue()


def zipped(files: dict[str, bytes]) -> bytes:
    output = io.BytesIO()
    with zipfile.ZipFile(output, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return output.getvalue()


def files_in(directory: Path) -> dict[str, bytes]:
    return {
        path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }


def fetch(server: Server, data: bytes, target: Path, name: str = "model.tar") -> bool:
    return fetch_url(f"https://{server.address}/{name}", sha256(data).hexdigest(), target, ca_file=server.ca_file)


def with_ranges(data: bytes, cuts: list[int]) -> Callable[[Request], Answer]:
    """Answer as a file server does; the first answers end too early, after so many bytes."""

    def answer(request: Request) -> Answer:
        cut = cuts.pop(0) if cuts else None
        if "Range" not in request.headers:
            return Answer(200, data, cut=cut)
        start = int(request.headers["Range"].removeprefix("bytes=").removesuffix("-"))
        if start >= len(data):
            return Answer(416)
        headers = {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}
        return Answer(206, data[start:], headers, cut)

    return answer


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz", "w:bz2"])
def test_an_archive(serve: Serve, tmp_path: Path, mode: str) -> None:
    data = tar(FILES, mode)
    server = serve(lambda _: Answer(200, data))
    assert fetch(server, data, tmp_path / "sources/a")
    assert files_in(tmp_path / "sources/a") == FILES
    assert not fetch(server, data, tmp_path / "sources/a")
    assert len(server.requests) == 1
    assert {path.name for path in (tmp_path / "sources").iterdir()} == {"a", "lock"}


@pytest.mark.parametrize("pack", [tar, zipped])
def test_the_one_directory_that_holds_all_is_left_out(
    serve: Serve, tmp_path: Path, pack: Callable[[dict[str, bytes]], bytes]
) -> None:
    data = pack({f"vibration-2.0.1/{name}": content for name, content in FILES.items()})
    assert fetch(serve(lambda _: Answer(200, data)), data, tmp_path / "a")
    assert files_in(tmp_path / "a") == FILES


def test_a_single_file(serve: Serve, tmp_path: Path) -> None:
    server = serve(lambda _: Answer(200, b"weights"))
    assert fetch(server, b"weights", tmp_path / "a", "classifier%20v2.onnx?token=secret")
    assert files_in(tmp_path / "a") == {"model.onnx": b"weights"}


def test_a_file_of_this_machine(tmp_path: Path) -> None:
    (tmp_path / "a model.tar").write_bytes(tar(FILES))
    url = (tmp_path / "a model.tar").as_uri()
    assert fetch_url(url, sha256(tar(FILES)).hexdigest(), tmp_path / "a")
    assert files_in(tmp_path / "a") == FILES
    assert (tmp_path / "a model.tar").exists()


def test_credentials_stay_with_their_host(serve: Serve, tmp_path: Path) -> None:
    """A hub sends downloads to another host's signed address, which is not to learn them and refuses them."""
    data = tar(FILES)
    storage = serve(lambda _: Answer(200, data))
    hub = serve(lambda _: Answer(302, headers={"Location": f"https://{storage.address}/signed"}))
    url, digest = f"https://{hub.address}/model.tar", sha256(data).hexdigest()
    assert fetch_url(url, digest, tmp_path / "a", username="plant", password="secret", ca_file=hub.ca_file)
    assert [request.headers.get("Authorization") for request in hub.requests] == ["Basic cGxhbnQ6c2VjcmV0"]
    assert [request.headers.get("Authorization") for request in storage.requests] == [None]


def test_an_address_is_shown_without_its_secrets(serve: Serve, tmp_path: Path) -> None:
    server = serve(lambda _: Answer(404))
    url = f"https://plant:secret@{server.address}/model.tar?token=secret"
    with pytest.raises(FleetError, match=f"https://{server.address}/model.tar") as raised:
        fetch_url(url, "0" * 64, tmp_path / "a", ca_file=server.ca_file)
    assert "secret" not in str(raised.value)


def test_a_broken_transfer_goes_on_where_it_stopped(serve: Serve, tmp_path: Path) -> None:
    data = tar(FILES)
    server = serve(with_ranges(data, [100_000, 50_000]))
    assert fetch(server, data, tmp_path / "a")
    assert files_in(tmp_path / "a") == FILES
    assert [request.headers.get("Range") for request in server.requests] == [None, "bytes=100000-", "bytes=150000-"]


def test_a_later_call_goes_on_too(serve: Serve, tmp_path: Path) -> None:
    data = tar(FILES)
    (tmp_path / "a.part").write_bytes(data[:70_000])
    server = serve(with_ranges(data, []))
    assert fetch(server, data, tmp_path / "a")
    assert [request.headers.get("Range") for request in server.requests] == ["bytes=70000-"]


@pytest.mark.parametrize("left", [b"x" * 70_000, b"x" * 10_000_000])
def test_a_bad_partial_file_is_fetched_anew(serve: Serve, tmp_path: Path, left: bytes) -> None:
    data = tar(FILES)
    (tmp_path / "a.part").write_bytes(left)
    assert fetch(serve(with_ranges(data, [])), data, tmp_path / "a")
    assert files_in(tmp_path / "a") == FILES


def test_a_server_without_ranges(serve: Serve, tmp_path: Path) -> None:
    data = tar(FILES)
    (tmp_path / "a.part").write_bytes(data[:70_000])
    assert fetch(serve(lambda _: Answer(200, data)), data, tmp_path / "a")
    assert files_in(tmp_path / "a") == FILES


def test_other_content_is_never_unpacked(serve: Serve, tmp_path: Path) -> None:
    server = serve(lambda _: Answer(200, tar({"model.onnx": b"another"})))
    with pytest.raises(FleetError, match="not what its sha256 says"):
        fetch(server, tar(FILES), tmp_path / "a")
    assert not (tmp_path / "a").exists()
    assert not (tmp_path / "a.part").exists()


def test_a_server_that_fails(serve: Serve, tmp_path: Path) -> None:
    server = serve(lambda _: Answer(503))
    with pytest.raises(FleetError, match="503") as caught:
        fetch(server, b"", tmp_path / "a", "model.tar?token=secret")
    assert len(server.requests) == 3
    assert "secret" not in str(caught.value)
    with pytest.raises(FleetError, match="404"):
        fetch(serve(lambda _: Answer(404)), b"", tmp_path / "a")


def test_an_untrusted_server(serve: Serve, tmp_path: Path) -> None:
    server = serve(lambda _: Answer(200))
    with pytest.raises(FleetError, match="cannot be fetched"):
        fetch_url(f"https://{server.address}/model.tar", "0" * 64, tmp_path / "a")
    assert server.requests == []


@pytest.mark.parametrize("name", ["../outside", "/outside"])
def test_paths_that_lead_out(serve: Serve, tmp_path: Path, name: str) -> None:
    data = tar({name: b"x"})
    with pytest.raises(FleetError, match="leads out of it"):
        fetch(serve(lambda _: Answer(200, data)), data, tmp_path / "sources/a")
    assert not (tmp_path / "sources/outside").exists()
    assert not (tmp_path / "sources/a").exists()


def test_what_is_no_archive(serve: Serve, tmp_path: Path) -> None:
    with pytest.raises(FleetError, match="neither an archive nor an ONNX file"):
        fetch(serve(lambda _: Answer(200, b"<html>")), b"<html>", tmp_path / "a")


def registry_of(serve: Serve, *layers: tuple[str, bytes, str]) -> tuple[Server, str]:
    """Serve an artifact with layers of media type, content and file name; return the digest of its manifest."""
    described = [
        descriptor(kind, data, annotations={MODEL_FILEPATH: name} if name else {}) for kind, data, name in layers
    ]
    manifest = json.dumps({"mediaType": IMAGE_MANIFEST, "layers": described}).encode()
    content: dict[str, Any] = {digest_of(data): data for _, data, _ in layers} | {digest_of(manifest): manifest}
    return serve(lambda request: Answer(200, content[request.path.rpartition("/")[2]])), digest_of(manifest)


def test_an_artifact_of_layers_of_every_kind(serve: Serve, tmp_path: Path) -> None:
    server, digest = registry_of(
        serve,
        ("application/vnd.cncf.model.weight.v1.tar", tar({"model.onnx": b"weights"}), "model.onnx"),
        ("application/vnd.cncf.model.doc.v1.tar+gzip", tar({"README.md": b"read"}, "w:gz"), "README.md"),
        ("application/vnd.cncf.model.weight.config.v1.raw", b"{}", "golden/seven.json"),
    )
    assert fetch_artifact(server.registry(), "vision/scratches", digest, tmp_path / "a")
    assert files_in(tmp_path / "a") == {"model.onnx": b"weights", "README.md": b"read", "golden/seven.json": b"{}"}
    requests = len(server.requests)
    assert not fetch_artifact(server.registry(), "vision/scratches", digest, tmp_path / "a")
    assert len(server.requests) == requests


def test_our_own_description_is_written_anew(serve: Serve, tmp_path: Path) -> None:
    ours = {"name": "digits", "version": "1.0.0", "platform": "onnxruntime_onnx", "file": "model.onnx"}
    data = tar({"model.json": json.dumps(ours).encode(), "model.onnx": b"weights"})
    server, digest = registry_of(serve, ("application/vnd.cncf.model.weight.v1.tar", data, "digits"))
    fetch_artifact(server.registry(), "a", digest, tmp_path / "a")
    assert files_in(tmp_path / "a") == {"model.onnx": b"weights"}


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        ("application/octet-stream", "", "without a file name"),
        ("application/vnd.cncf.model.weight.v1.tar+zstd", "model.onnx", "zstd"),
        ("application/octet-stream", "../outside", "leads out of it"),
    ],
)
def test_layers_that_cannot_be_read(serve: Serve, tmp_path: Path, kind: str, name: str, message: str) -> None:
    server, digest = registry_of(serve, (kind, b"weights", name))
    with pytest.raises(FleetError, match=message.replace("+", r"\+")):
        fetch_artifact(server.registry(), "a", digest, tmp_path / "sources/a")
    assert not (tmp_path / "sources/a").exists()


def test_an_index_is_no_model(serve: Serve, tmp_path: Path) -> None:
    index = json.dumps({"manifests": []}).encode()
    server = serve(lambda _: Answer(200, index))
    with pytest.raises(FleetError, match="an image index"):
        fetch_artifact(server.registry(), "a", digest_of(index), tmp_path / "a")
