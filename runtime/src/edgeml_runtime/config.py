# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""The configuration file: one JSON object, strict in keys, types and values.

See README.md for all keys. Anything unknown or wrong raises ConfigurationError.
"""

import ipaddress
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Never

from edgeml_runtime.errors import ConfigurationError

DEFAULT_MAX_REQUEST_BYTES = 64 * 1024 * 1024
LOG_LEVELS = ("debug", "info", "warning", "error")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_VERSION = re.compile(r"\d+\.\d+\.\d+([-+][0-9A-Za-z.+-]+)?")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_KINDS = {str: "a string", int: "an integer", list: "a list", dict: "an object"}


@dataclass(frozen=True, slots=True)
class Address:
    """A place to listen on: a TCP address, or a unix socket when ``path`` is set."""

    text: str
    host: str = ""
    port: int = 0
    path: str = ""

    @property
    def is_private(self) -> bool:
        """Only processes on this host can connect."""
        return bool(self.path) or ipaddress.ip_address(self.host).is_loopback


@dataclass(frozen=True, slots=True)
class Tls:
    """Files of the TLS listeners, PEM. With ``client_ca``, clients must present a certificate of that CA."""

    certificate: Path
    key: Path
    client_ca: Path | None


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A model to serve; ``path`` is the unpacked model directory."""

    name: str
    version: str
    digest: str
    path: Path


@dataclass(frozen=True, slots=True)
class Config:
    """The whole configuration. ``threads`` are engine threads per model."""

    rest: tuple[Address, ...]
    grpc: tuple[Address, ...]
    metrics: tuple[Address, ...]
    tls: Tls | None
    bearer_token: str | None
    models: tuple[ModelConfig, ...]
    threads: int
    log_level: str
    max_request_bytes: int


def load_config(file: Path) -> Config:
    """Read and check a configuration file. Raises ConfigurationError."""
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(str(file), "", error.strerror or "an error", "a readable JSON file") from None
    except ValueError as error:
        raise ConfigurationError(str(file), "", f"text that is no JSON ({error})", "a JSON object") from None
    return _Checker(str(file)).config(document)


class _Checker:
    def __init__(self, file: str) -> None:
        self._file = file

    def config(self, document: object) -> Config:
        root = self._object(
            document,
            "",
            required={"listen", "models"},
            optional={"tls", "bearer_token_file", "threads", "log_level", "max_request_bytes"},
        )
        listen = self._object(root["listen"], "listen", required=set(), optional={"rest", "grpc", "metrics"})
        addresses = {protocol: self._addresses(listen, protocol) for protocol in ("rest", "grpc", "metrics")}
        if not addresses["rest"] and not addresses["grpc"]:
            self._fail("listen", "no rest and no grpc listener", "at least one of them", "add a listener")
        everywhere = [address.text for some in addresses.values() for address in some]
        for text in everywhere:
            if everywhere.count(text) > 1:
                self._fail("listen", f"{text!r} more than once", "each listener once", "remove one of them")
        tls = self._tls(root.get("tls"))
        token = self._token(root.get("bearer_token_file"))
        for protocol, some in addresses.items():
            for index, address in enumerate(some):
                self._refuse_open_listener(f"listen.{protocol}[{index}]", address, tls, token)
        log_level = root.get("log_level", "info")
        if log_level not in LOG_LEVELS:
            self._fail("log_level", repr(log_level), ", ".join(LOG_LEVELS))
        return Config(
            rest=addresses["rest"],
            grpc=addresses["grpc"],
            metrics=addresses["metrics"],
            tls=tls,
            bearer_token=token,
            models=self._models(root["models"]),
            threads=self._integer(root.get("threads", 1), "threads", 1, 1024),
            log_level=log_level,
            max_request_bytes=self._integer(
                root.get("max_request_bytes", DEFAULT_MAX_REQUEST_BYTES), "max_request_bytes", 1, 2**31 - 1
            ),
        )

    def _addresses(self, listen: dict[str, Any], protocol: str) -> tuple[Address, ...]:
        key = f"listen.{protocol}"
        texts = self._typed(listen.get(protocol, []), key, list)
        return tuple(self._address(text, f"{key}[{index}]") for index, text in enumerate(texts))

    def _address(self, value: object, key: str) -> Address:
        allowed = "'IP:PORT', '[IPv6]:PORT', 'localhost:PORT' or 'unix:/absolute/path'"
        text: str = self._typed(value, key, str)
        if text.startswith("unix:"):
            path = text.removeprefix("unix:")
            # The kernel's limit for the path of a unix socket is 108 bytes with its final zero.
            if not path.startswith("/") or len(path.encode()) > 107:
                self._fail(key, repr(text), allowed, "give an absolute path of at most 107 bytes")
            return Address(text, path=path)
        host, separator, port = text.rpartition(":")
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
        elif ":" in host:
            self._fail(key, repr(text), allowed, "put the IPv6 address in brackets")
        if host == "localhost":
            host = "127.0.0.1"
        try:
            ipaddress.ip_address(host)
        except ValueError:
            self._fail(key, repr(text), allowed)
        if not separator or not port.isascii() or not port.isdecimal() or not 1 <= int(port) <= 65535:
            self._fail(key, repr(text), allowed, "give a port from 1 to 65535")
        return Address(text, host=host, port=int(port))

    def _refuse_open_listener(self, key: str, address: Address, tls: Tls | None, token: str | None) -> None:
        if address.is_private or (tls and (tls.client_ca or token)):
            return
        self._fail(
            key,
            f"{address.text!r} with {'TLS' if tls else 'no TLS'} and {'a' if token else 'no'} client check",
            "loopback or a unix socket; elsewhere only TLS with tls.client_ca or bearer_token_file",
            "configure tls and one of tls.client_ca and bearer_token_file, or listen on loopback",
        )

    def _tls(self, document: object) -> Tls | None:
        if document is None:
            return None
        tls = self._object(document, "tls", required={"certificate", "key"}, optional={"client_ca"})
        client_ca = tls.get("client_ca")
        return Tls(
            certificate=self._readable(tls["certificate"], "tls.certificate"),
            key=self._readable(tls["key"], "tls.key"),
            client_ca=None if client_ca is None else self._readable(client_ca, "tls.client_ca"),
        )

    def _token(self, path: object) -> str | None:
        if path is None:
            return None
        key = "bearer_token_file"
        file = self._readable(path, key)
        token = file.read_bytes().strip()
        # What was seen is a secret: say only what is wrong with it.
        if not token:
            self._fail(key, f"{str(file)!r}, which is empty", "a file with one token", "write a token into it")
        if any(not 33 <= byte <= 126 for byte in token):
            self._fail(
                key,
                f"{str(file)!r}, whose token has spaces, control or non-ASCII characters",
                "a file with one token of printable ASCII characters",
                "write another token into it",
            )
        return token.decode("ascii")

    def _models(self, documents: object) -> tuple[ModelConfig, ...]:
        models: list[ModelConfig] = []
        for index, document in enumerate(self._typed(documents, "models", list)):
            key = f"models[{index}]"
            model = self._object(document, key, required={"name", "version", "digest", "path"}, optional=set())
            name = self._matching(model["name"], f"{key}.name", _NAME, "letters, digits, '.', '_' and '-'")
            if any(other.name == name for other in models):
                self._fail(f"{key}.name", repr(name), "each model once", "remove one of the two")
            models.append(
                ModelConfig(
                    name=name,
                    version=self._matching(
                        model["version"], f"{key}.version", _VERSION, "a version of three parts such as '1.0.0'"
                    ),
                    digest=self._matching(
                        model["digest"], f"{key}.digest", _DIGEST, "'sha256:' and 64 lower-case hexadecimal digits"
                    ),
                    path=Path(self._typed(model["path"], f"{key}.path", str)),
                )
            )
        if not models:
            self._fail("models", "no model", "at least one model", "add a model")
        return tuple(models)

    def _readable(self, value: object, key: str) -> Path:
        file = Path(self._typed(value, key, str))
        try:
            file.open("rb").close()
        except OSError as error:
            self._fail(key, f"{str(file)!r} ({error.strerror})", "a readable file")
        return file

    def _matching(self, value: object, key: str, pattern: re.Pattern[str], allowed: str) -> str:
        text: str = self._typed(value, key, str)
        if not pattern.fullmatch(text):
            self._fail(key, repr(text), allowed)
        return text

    def _integer(self, value: object, key: str, low: int, high: int) -> int:
        if type(value) is not int or not low <= value <= high:
            self._fail(key, repr(value), f"an integer from {low} to {high}")
        return value

    def _typed(self, value: object, key: str, kind: type) -> Any:
        if type(value) is not kind:
            self._fail(key, _shown(value), _KINDS[kind])
        return value

    def _object(self, value: object, key: str, required: set[str], optional: set[str]) -> dict[str, Any]:
        document: dict[str, Any] = self._typed(value, key or "the document", dict)
        prefix = f"{key}." if key else ""
        known = ", ".join(sorted(required | optional))
        for unknown in sorted(document.keys() - required - optional):
            self._fail(prefix + unknown, "an unknown key", f"the keys {known}", "remove the key or correct its name")
        for missing in sorted(required - document.keys()):
            self._fail(prefix + missing, "no such key", f"the keys {known}", "add the key")
        return document

    def _fail(self, key: str, seen: str, allowed: str, remedy: str = "") -> Never:
        raise ConfigurationError(self._file, key, seen, allowed, remedy)


def _shown(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."
