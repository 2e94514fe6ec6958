# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a model does what its golden cases say, tried before it is published, in the runtime that will serve it.

The runtime is the published image itself, for this machine's architecture: its layers are unpacked, and its Python is
started through its own dynamic loader. That needs neither an engine nor root.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import signal
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from ansible_collections.edgeml.fleet.plugins.module_utils._canonical import canonical_json
from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._image.cache import LayerCache, remove_tree
from ansible_collections.edgeml.fleet.plugins.module_utils._image.layer import unpack
from ansible_collections.edgeml.fleet.plugins.module_utils._image.python import Interpreter, controller_architecture
from ansible_collections.edgeml.fleet.plugins.module_utils._image.upstream import UpstreamImage
from ansible_collections.edgeml.fleet.plugins.module_utils._inference.client import UnreachableError
from ansible_collections.edgeml.fleet.plugins.module_utils._inference.connect import connect
from ansible_collections.edgeml.fleet.plugins.module_utils._inference.golden import (
    check_case,
    load_case,
    load_cases,
    load_labels,
)
from ansible_collections.edgeml.fleet.plugins.module_utils._model.files import (
    GOLDEN,
    Model,
    model_files,
    write_model_tar,
)

#: What the images of the collection's runtime start.
RUNTIME = ("-m", "edgeml_runtime")
#: Seconds for a model to load and answer its own golden cases, on a busy controller.
START_SECONDS = 300.0
REQUEST_SECONDS = 120.0
POLL_SECONDS = 0.05
SHOWN_LOG = 1500
#: How many runtimes stay unpacked in the cache.
KEPT_ROOTS = 3


def try_before_publication(
    model: Model, digest: str, trial: Mapping[str, Any] | None, access: Mapping[str, Any], *, check_mode: bool
) -> str:
    """Try a model as the option `trial` of the module model_artifact says; `access` is its option `registry`.

    Returns and raises what `try_model` does. In check mode an image that is not published yet is no failure.
    """
    if not trial:
        return "nothing was asked to try it in"
    credentials = {key: access[key] or "" for key in ("username", "password", "ca_file")}
    cache = LayerCache(Path(trial["cache"]).resolve())
    with cache.locked():
        image = UpstreamImage(f"{access['address']}/{trial['image']}", cache, **credentials)
        if check_mode:
            try:
                image.config(controller_architecture())
            except FleetError as error:
                return f"its runtime is not published yet: {error}"
        return try_model(model, digest, image, cache, trial["limits"])


def try_model(model: Model, digest: str, image: UpstreamImage, cache: LayerCache, limits: Mapping[str, Any]) -> str:
    """Serve a model as a device would and ask it its golden cases over REST and gRPC.

    Parameters
    ----------
    model : Model
        What is to be published.
    digest : str
        Digest of its artifact; what passed once with this image and these limits is not tried again.
    image : UpstreamImage
        The runtime's image, by digest.
    cache : LayerCache
        Locked; keeps the unpacked image and what has passed.
    limits : mapping
        The limits of the runtime's configuration on the devices.

    Returns
    -------
    str
        Why the model was not tried; empty if it passed.

    Raises
    ------
    FleetError
        The model does not load, or a golden case is not answered as it says.
    """
    architecture = controller_architecture()
    config = image.config(architecture).get("config") or {}
    entrypoint = config.get("Entrypoint") or []
    if tuple(entrypoint[-2:]) != RUNTIME:
        return "its runtime is another server than the collection's"
    passed = cache.trials / _key(digest, image.digest, limits)
    if passed.exists():
        return ""
    root = _unpacked(image, architecture, cache)
    environment = dict(item.partition("=")[::2] for item in config.get("Env") or [])
    version = Path(entrypoint[0]).name.removeprefix("python")
    with cache.work_directory() as work:
        directory = work / "model"
        _write_model(model, directory)
        _try(model, directory, work, _program(root, version, environment, work), limits)
    passed.touch()
    return ""


def check_golden(model: Model) -> None:
    """Raise FleetError unless each golden case of the model is one by its form, whatever server it is for."""
    for name, path in sorted(model_files(model).items()):
        if PurePosixPath(name).match(f"{GOLDEN}/*.json"):
            load_case(path)


def check_version_is_free(model: Model, entry: Mapping[str, Any], published: str | None) -> None:
    """Raise FleetError if the version is `published`, a digest, with other content than `entry` says."""
    if published not in (None, entry["digest"]):
        raise FleetError(
            f"Version {model.tag} of model {model.name} is published with other content",
            where=f"{entry['repository']}:{model.tag} in the store",
            seen=f"published {published}, now {entry['digest']}",
            remedy="give what has changed a new version; devices and people tell versions by their numbers",
        )


def _key(*parts: Any) -> str:
    return hashlib.sha256(canonical_json(list(parts))).hexdigest()


def _unpacked(image: UpstreamImage, architecture: str, cache: LayerCache) -> Path:
    """Return the directory with the image's files, unpacked once."""
    layers = image.layers(architecture)
    root = cache.roots / _key([layer.digest for layer in layers])
    if not root.is_dir():
        with cache.work_directory() as work:
            for layer in layers:
                with tarfile.open(layer.path, "r:gz") as archive:
                    unpack(archive, work)
            work.rename(root)
            work.mkdir()
        for old in sorted(cache.roots.iterdir(), key=lambda path: path.stat().st_mtime)[:-KEPT_ROOTS]:
            remove_tree(old)
    os.utime(root)  # the ones used last are kept
    return root


def _write_model(model: Model, directory: Path) -> None:
    with tempfile.TemporaryFile() as file:
        write_model_tar(model, file)
        file.seek(0)
        with tarfile.open(fileobj=file) as archive:
            archive.extractall(directory, filter="data")


def _program(root: Path, version: str, environment: Mapping[str, str], work: Path) -> Sequence[str]:
    """Return the command that starts the runtime of the unpacked image.

    The runtime starts processes of its own with ``sys.executable``, which here is a script.
    """
    interpreter = Interpreter(root, version)
    paths = [f"{root}{path}" for path in environment.get("PYTHONPATH", "").split(":") if path]
    variables = {
        **{name: value for name, value in environment.items() if name not in ("PATH", "PYTHONPATH")},
        **interpreter.environment,
        "PYTHONPATH": ":".join(paths),
        "PATH": os.defpath,
        "HOME": str(work),
        "TMPDIR": str(work),
    }
    script = work / "python"
    quoted = [*(f"{name}={value}" for name, value in variables.items()), *interpreter.command]
    script.write_text("#!/bin/sh\nexec env -i " + " ".join(map(shlex.quote, quoted)) + ' "$@"\n')
    script.chmod(0o755)
    start = "import sys; sys.executable = sys.argv.pop(1); from edgeml_runtime.start import main; main()"
    return [str(script), "-c", start, str(script)]


def _try(model: Model, directory: Path, work: Path, program: Sequence[str], limits: Mapping[str, Any]) -> None:
    # The path of a socket is short, the cache's may be long.
    with tempfile.TemporaryDirectory(prefix="edgeml-") as sockets:
        listen = {protocol: [f"unix:{sockets}/{protocol}"] for protocol in ("rest", "grpc")}
        models = [{"name": model.name, "version": model.version, "path": str(directory)}]
        configuration = work / "runtime.json"
        configuration.write_text(json.dumps({"listen": listen, "models": models, "limits": dict(limits)}))
        log = work / "log"
        with _running([*program, "serve", "--config", str(configuration)], log) as process:
            for protocol, scheme in (("rest", "http"), ("grpc", "grpc")):
                with connect(f"{scheme}+unix://{sockets}/{protocol}", timeout=REQUEST_SECONDS) as client:
                    _wait(model, client, process, log)
                    _check_cases(model, client, directory, protocol, limits)


@contextmanager
def _running(command: Sequence[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, cwd=log.parent, start_new_session=True
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait(model: Model, client: Any, process: subprocess.Popen[bytes], log: Path) -> None:
    """Return when the model is ready; raise FleetError if it does not become so."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            if client.model_ready(model.name, model.version):
                return
        except UnreachableError:
            pass
        if process.poll() is not None:
            break
        if time.monotonic() > deadline:
            break
        time.sleep(POLL_SECONDS)
    raise FleetError(
        f"The model {model.name} {model.version} does not load in its runtime",
        where=str(model.source),
        seen=_last_words(log) or f"exit status {process.poll()} and no word in its log",
        remedy="correct the model; model_store_try_models: false publishes it untried, and devices refuse it",
    )


def _last_words(log: Path) -> str:
    """Return what the runtime says went wrong: the messages of its last lines, which are JSON."""
    words = []
    for line in log.read_text(errors="replace").splitlines()[-8:]:
        try:
            document = json.loads(line)
            if document.get("level") in ("error", "critical", "warning"):
                words.append(str(document.get("message") or document.get("event") or line))
        except (ValueError, AttributeError):
            words.append(line)
    return " | ".join(words)[-SHOWN_LOG:]


def _check_cases(model: Model, client: Any, directory: Path, protocol: str, limits: Mapping[str, Any]) -> None:
    if not list((directory / GOLDEN).glob("*.json")):
        return
    labels_file = directory / "labels.txt"
    labels = load_labels(labels_file) if labels_file.exists() else []
    for case in load_cases(directory / GOLDEN):
        where = f"{model.source}, golden case {case.name}, over {protocol}"
        try:
            result = check_case(client, model.name, model.version, case, labels)
        except FleetError as error:
            raise FleetError(
                f"The model {model.name} {model.version} does not answer a golden case",
                where=where,
                seen=f"{error.what}: {error.seen}" if error.seen else error.what,
                remedy="correct the case or the model; if a limit of the runtime is too small, raise it in "
                "inference_runtime_limits",
            ) from error
        if not result.passed:
            raise FleetError(
                f"The model {model.name} {model.version} answers a golden case otherwise than expected",
                where=where,
                seen=result.difference,
                remedy="publish the model that the cases were recorded with, or record them again",
            )
