# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A model's files from elsewhere: a web server or another registry, verified before anything is made of them."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import http.client
import json
import shutil
import tarfile
import time
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast
from urllib.error import HTTPError, URLError
from urllib.parse import unquote, urlsplit

from ansible.module_utils.urls import SSLValidationError, open_url
from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._host.files import sync_directory, sync_tree
from ansible_collections.edgeml.fleet.plugins.module_utils._model.files import DESCRIPTION
from ansible_collections.edgeml.fleet.plugins.module_utils._oci import failures as _failures
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.names import (
    MODEL_FILEPATH,
    check_digest,
    check_repository,
)
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.registry import Registry
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.store import fetch_blob

BLOCK = 1 << 20  # bytes
TIMEOUT = 30  # seconds without network progress
TITLE = "org.opencontainers.image.title"  # what general OCI clients call a file
OWN_DESCRIPTION = {"name", "version", "platform", "file"}


def fetch_url(
    url: str, sha256: str, directory: Path, *, username: str = "", password: str = "", ca_file: str = ""
) -> bool:
    """Make `directory` hold the files of an archive, or the one ONNX file, at `url`; return False if it did already.

    A transfer that broke off goes on where it stopped, in this call or in a later one.

    Parameters
    ----------
    url : str
        ``https``, ``http`` or ``file``. A name that ends with ``.onnx`` is a single file, all else a tar or zip.
    sha256 : str
        64 hexadecimal digits of what is fetched.
    directory : pathlib.Path
        Appears in one step. Beside it, work is done under names that begin with its own.

    Raises
    ------
    FleetError
        Unreachable server, other content than `sha256` says, an archive that cannot be read, full disk.
    """
    with _making(directory) as work:
        if work is None:
            return False
        partial = directory.with_name(directory.name + ".part")
        if urlsplit(url).scheme == "file":
            partial = Path(unquote(urlsplit(url).path))
            _verify_file(partial, sha256, url)
            _unpack(partial, url, work)
        else:
            _download(url, sha256, partial, username, password, ca_file)
            _unpack(partial, url, work)
            partial.unlink()
    return True


def fetch_artifact(registry: Registry, repository: str, digest: str, directory: Path) -> bool:
    """Make `directory` hold the files of a model in a registry; return False if it did already.

    `digest` is that of the manifest of a ModelPack artifact (CNCF model-spec), or of any artifact whose layers are tar
    archives or files with a name in an annotation. Raise FleetError.
    """
    check_repository(repository, "the model's source")
    check_digest(digest, "the model's source")
    where = f"{registry.address}/{repository}@{digest}"
    with _making(directory) as work:
        if work is None:
            return False
        manifest = json.loads(registry.get_manifest(repository, digest)[0])
        layers = manifest.get("layers") if isinstance(manifest, dict) else None
        if not layers:
            raise FleetError(
                "This is no model",
                where=where,
                seen="an image index" if "manifests" in manifest else f"mediaType {manifest.get('mediaType')}",
                remedy="name the digest of the model's own manifest",
            )
        blobs = directory.with_name(directory.name + ".blobs")
        for layer in layers:
            blob = blobs / layer["digest"].removeprefix("sha256:")
            fetch_blob(registry, repository, layer["digest"], layer["size"], blob, blob.with_suffix(".part"))
            _put_layer(layer, blob, work, where)
        with contextlib.suppress(OSError, ValueError, AttributeError):
            # Written anew when the model is packed.
            if set(json.loads((work / DESCRIPTION).read_bytes())) <= OWN_DESCRIPTION:
                (work / DESCRIPTION).unlink()
        shutil.rmtree(blobs)
    return True


@contextlib.contextmanager
def _making(directory: Path) -> Iterator[Path | None]:
    """Give an empty directory that becomes `directory` at the end, None if that exists; one process at a time."""
    work = directory.with_name(directory.name + ".work")
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        with (directory.parent / "lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if directory.is_dir():
                yield None
                return
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir()
            yield work
            sync_tree(work)  # nobody reads it once more before it is published
            work.rename(directory)
            sync_directory(directory.parent)
    except (OSError, EOFError, tarfile.TarError, zipfile.BadZipFile) as error:
        raise FleetError(
            "A model's source cannot be kept",
            where=str(directory),
            seen=str(error),
            remedy="check the free space and the rights of the build directory, and that the archive is whole",
        ) from error


def _download(url: str, sha256: str, partial: Path, username: str, password: str, ca_file: str) -> None:
    """Complete `partial`; raise FleetError if it cannot be, or is then something else than `sha256` says."""
    parts = urlsplit(url)
    # A query and what stands before the host may hold secrets.
    shown = parts._replace(query="", netloc=parts.netloc.rpartition("@")[2]).geturl()
    failures = 0
    seen: Exception | None = None
    while True:
        have = partial.stat().st_size if partial.exists() else 0
        try:
            _continue(url, partial, have, username, password, ca_file)
        except SSLValidationError as error:
            raise _unreachable(shown, error, "give the certificate authority's file for this host") from error
        except HTTPError as error:
            if error.code == 416:  # nothing is left, or the partial file is of something else
                with contextlib.suppress(FleetError):
                    return _verify_file(partial, sha256, shown)
                partial.unlink()
                continue
            if error.code not in _failures.TRANSIENT_STATUS:
                raise _unreachable(shown, error, "correct the address, or the credentials for this host") from error
            seen = error
        except (URLError, OSError, http.client.HTTPException) as error:
            seen = error
        else:
            try:
                return _verify_file(partial, sha256, shown)
            except FleetError:
                partial.unlink()
                if not have:
                    raise
                continue  # what was there before may be bad: once more from its beginning
        now = partial.stat().st_size if partial.exists() else 0
        failures = 0 if now > have else failures + 1
        if failures == _failures.ATTEMPTS:
            raise _unreachable(shown, seen, "check the network and run again: what was fetched is kept") from seen
        time.sleep(_failures.FIRST_PAUSE * 2**failures)


def _continue(url: str, partial: Path, have: int, username: str, password: str, ca_file: str) -> None:
    """Append to `partial` from byte `have` on, or write it anew if the server knows no ranges."""
    response = open_url(
        url,
        headers={"Range": f"bytes={have}-"} if have else {},
        timeout=TIMEOUT,
        url_username=username or None,
        url_password=password or None,
        force_basic_auth=bool(username),
        unredirected_headers=["Authorization"],  # they are for this host alone
        ca_path=ca_file or None,
        follow_redirects="safe",
    )
    with response, partial.open("ab") as file:
        if response.status != 206:
            file.truncate(0)
        missing = response.length
        while block := response.read(BLOCK):
            file.write(block)
            missing = None if missing is None else missing - len(block)
        if missing:
            raise http.client.IncompleteRead(b"", missing)


def _verify_file(path: Path, sha256: str, shown: str) -> None:
    try:
        with path.open("rb") as file:
            seen = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise FleetError(
            "A model's source cannot be read", where=shown, seen=str(error), remedy="correct the address"
        ) from error
    if seen != sha256:
        raise FleetError(
            "A model's source is not what its sha256 says",
            where=shown,
            seen=f"sha256 {seen}",
            remedy="find out why it changed; only if you trust it, write the new sha256 into the catalogue",
        )


def _unreachable(shown: str, error: Exception, remedy: str) -> FleetError:
    return FleetError("A model's source cannot be fetched", where=shown, seen=str(error), remedy=remedy)


def _unpack(file: Path, url: str, target: Path) -> None:
    """Put the files of an archive, or the one ONNX file, into `target`; a directory that holds all else is left out."""
    name = PurePosixPath(unquote(urlsplit(url).path)).name
    if name.endswith(".onnx"):
        shutil.copyfile(file, target / "model.onnx")
        return
    if tarfile.is_tarfile(file):
        with tarfile.open(file) as archive:
            _put_tar(archive, target)
    elif zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            for entry in archive.infolist():
                if not entry.is_dir():
                    with archive.open(entry) as content:
                        _put(content, entry.filename, target)
    else:
        raise FleetError(
            "A model's source is neither an archive nor an ONNX file",
            where=name,
            remedy="give a tar (also compressed by gzip, bzip2 or xz), a zip, or a file whose name ends with .onnx",
        )
    entries = list(target.iterdir())
    if len(entries) == 1 and entries[0].is_dir():
        only = entries[0].rename(target.with_name(target.name + ".only"))
        target.rmdir()
        only.rename(target)


def _put_layer(layer: Mapping[str, Any], blob: Path, target: Path, where: str) -> None:
    annotations = layer.get("annotations") or {}
    media_type = str(layer.get("mediaType"))
    if tarfile.is_tarfile(blob) and not media_type.endswith(".raw"):
        with tarfile.open(blob) as archive:
            _put_tar(archive, target)
        return
    name = annotations.get(MODEL_FILEPATH) or annotations.get(TITLE)
    if not name or media_type.endswith("zstd"):
        raise FleetError(
            "A layer of the model cannot be read",
            where=where,
            seen=f"a layer of type {media_type}" + ("" if name else " without a file name"),
            remedy="use a model whose layers are tar archives, gzip at most, or files named by the annotation "
            + MODEL_FILEPATH,
        )
    with blob.open("rb") as content:
        _put(content, name, target)


def _put_tar(archive: tarfile.TarFile, target: Path) -> None:
    for entry in archive:
        if entry.isfile():
            with cast(IO[bytes], archive.extractfile(entry)) as content:  # None for what is not a file
                _put(content, entry.name, target)
        elif not entry.isdir():
            raise FleetError(
                "A model holds regular files and directories only",
                where=entry.name,
                seen="a link or a special file",
                remedy="use an archive without it",
            )


def _put(content: IO[bytes], name: str, target: Path) -> None:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise FleetError("An archive holds a path that leads out of it", where=name, remedy="use another archive")
    file = target / path
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("wb") as output:
        shutil.copyfileobj(content, output, BLOCK)
