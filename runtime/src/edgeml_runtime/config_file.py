# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Reads the configuration file: one JSON object, strict in keys, types and values.

See README.md for all keys. Anything unknown or wrong raises ConfigurationError.
"""

import ipaddress
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

from edgeml_runtime.config import (
    INFERENCE_PROTOCOLS,
    LOG_LEVELS,
    PROTOCOLS,
    Address,
    Config,
    Grant,
    Limits,
    ModelConfig,
    Mqtt,
    Tls,
)
from edgeml_runtime.document import Reader
from edgeml_runtime.serving import EngineOptions, ServingOptions, read_engine_options, read_overrides

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_VERSION = re.compile(r"\d+\.\d+\.\d+([-+][0-9A-Za-z.+-]+)?")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_TOPIC = re.compile(r"[^$+#\0/][^+#\0/]*(/[^+#\0/]+)*")
_HOST = re.compile(r"[0-9A-Fa-f.]*:[0-9A-Fa-f:.]+|[0-9A-Za-z_-]{1,63}(\.[0-9A-Za-z_-]{1,63})*")


def load_config(file: Path) -> Config:
    """Read and check a configuration file. Raises ConfigurationError."""
    return read_config(Reader.load(file), str(file))


def read_config(document: object, name: str) -> Config:
    """Check a configuration; ``name`` is what errors call it. Raises ConfigurationError."""
    return _ConfigReader(name).config(document)


class _ConfigReader(Reader):
    def config(self, document: object) -> Config:
        root = self.mapping(
            document,
            "",
            required=("listen", "models"),
            optional=(
                "mqtt",
                "tls",
                "bearer_token_file",
                "access",
                "unprotected_listeners",
                "engine",
                "cache_directory",
                "limits",
                "log_level",
                "log_requests",
                "drain_seconds",
            ),
        )
        listen = self.mapping(root["listen"], "listen", optional=PROTOCOLS)
        addresses = {protocol: self._addresses(listen, protocol) for protocol in PROTOCOLS}
        mqtt = self._mqtt(root.get("mqtt"))
        if not addresses["rest"] and not addresses["grpc"] and mqtt is None:
            self.fail("listen", "no rest and no grpc listener, and no mqtt", "at least one", "add a listener")
        everywhere = [address.text for some in addresses.values() for address in some]
        for text in everywhere:
            if everywhere.count(text) > 1:
                self.fail("listen", f"{text!r} more than once", "each listener once", "remove one of them")
        for index, address in enumerate(addresses["admin"]):
            if not address.path:
                self.fail(f"listen.admin[{index}]", repr(address.text), "'unix:/absolute/path'", "use a unix socket")
        tls = self._tls(root.get("tls"))
        grants = self._grants(root, tls)
        unprotected = self.choice(
            root.get("unprotected_listeners", "refuse"), "unprotected_listeners", ("refuse", "allow")
        )
        for protocol, some in addresses.items():
            for index, address in enumerate(some):
                if unprotected == "refuse":
                    self._refuse_open_listener(f"listen.{protocol}[{index}]", address, tls, grants)
        if mqtt and unprotected == "refuse" and mqtt.ca is None and not _is_loopback(mqtt.host):
            self.fail(
                "mqtt",
                f"host {mqtt.host!r} with no TLS",
                "loopback; elsewhere only TLS",
                "configure mqtt.tls, or set unprotected_listeners to 'allow' where the network itself is trusted",
            )
        cache_directory = root.get("cache_directory")
        return Config(
            rest=addresses["rest"],
            grpc=addresses["grpc"],
            metrics=addresses["metrics"],
            admin=addresses["admin"],
            mqtt=mqtt,
            tls=tls,
            grants=grants,
            models=self._models(root["models"]),
            engine=read_engine_options(self, root.get("engine", {}), "engine", EngineOptions()),
            cache_directory=None
            if cache_directory is None
            else Path(self.typed(cache_directory, "cache_directory", str)),
            limits=self._limits(root.get("limits", {})),
            log_level=self.choice(root.get("log_level", "info"), "log_level", LOG_LEVELS),
            log_requests=self.typed(root.get("log_requests", False), "log_requests", bool),
            drain_seconds=self.number(root.get("drain_seconds", 10), "drain_seconds", 0, 3600),
        )

    def _addresses(self, listen: dict[str, Any], protocol: str) -> tuple[Address, ...]:
        key = f"listen.{protocol}"
        texts = self.typed(listen.get(protocol, []), key, list)
        return tuple(self._address(text, f"{key}[{index}]") for index, text in enumerate(texts))

    def _address(self, value: object, key: str) -> Address:
        allowed = "'IP:PORT', '[IPv6]:PORT', 'localhost:PORT' or 'unix:/absolute/path'"
        text: str = self.typed(value, key, str)
        if text.startswith("unix:"):
            path = text.removeprefix("unix:")
            # The kernel's limit for the path of a unix socket is 108 bytes with its final zero.
            if not path.startswith("/") or len(path.encode()) > 107:
                self.fail(key, repr(text), allowed, "give an absolute path of at most 107 bytes")
            return Address(text, path=path)
        host, separator, port = text.rpartition(":")
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
        elif ":" in host:
            self.fail(key, repr(text), allowed, "put the IPv6 address in brackets")
        if host == "localhost":
            host = "127.0.0.1"
        try:
            ipaddress.ip_address(host)
        except ValueError:
            self.fail(key, repr(text), allowed)
        if not separator or not port.isascii() or not port.isdecimal() or not 1 <= int(port) <= 65535:
            self.fail(key, repr(text), allowed, "give a port from 1 to 65535")
        return Address(text, host=host, port=int(port))

    def _refuse_open_listener(self, key: str, address: Address, tls: Tls | None, grants: tuple[Grant, ...]) -> None:
        if address.is_private or (tls and (tls.client_ca or grants)):
            return
        self.fail(
            key,
            f"{address.text!r} with {'TLS' if tls else 'no TLS'} and {'a' if grants else 'no'} client check",
            "loopback or a unix socket; elsewhere only TLS with tls.client_ca or bearer_token_file",
            "configure tls and one of tls.client_ca, bearer_token_file and access, listen on loopback, "
            "or set unprotected_listeners to 'allow' where the network itself is trusted",
        )

    def _tls(self, document: object) -> Tls | None:
        if document is None:
            return None
        tls = self.mapping(document, "tls", required=("certificate", "key"), optional=("client_ca",))
        client_ca = tls.get("client_ca")
        return Tls(
            certificate=self.readable(tls["certificate"], "tls.certificate"),
            key=self.readable(tls["key"], "tls.key"),
            client_ca=None if client_ca is None else self.readable(client_ca, "tls.client_ca"),
        )

    def _grants(self, root: dict[str, Any], tls: Tls | None) -> tuple[Grant, ...]:
        grants = []
        if root.get("bearer_token_file") is not None:
            token = self._secret(root["bearer_token_file"], "bearer_token_file")
            grants.append(Grant(token, certificate_name=None, models=None, manage=True))
        for index, value in enumerate(self.typed(root.get("access", []), "access", list)):
            key = f"access[{index}]"
            given = self.mapping(
                value, key, required=("models",), optional=("token_file", "certificate_name", "manage")
            )
            if ("token_file" in given) == ("certificate_name" in given):
                self.fail(key, "both or none of the two", "one of token_file and certificate_name", "give one of them")
            if "certificate_name" in given and not (tls and tls.client_ca):
                self.fail(
                    f"{key}.certificate_name",
                    "no tls.client_ca",
                    "client certificates with tls.client_ca",
                    "configure tls.client_ca, or use token_file",
                )
            models = self.typed(given["models"], f"{key}.models", list)
            names = frozenset(self.typed(name, f"{key}.models", str) for name in models)
            grants.append(
                Grant(
                    token=self._secret(given["token_file"], f"{key}.token_file") if "token_file" in given else None,
                    certificate_name=self.typed(given["certificate_name"], f"{key}.certificate_name", str)
                    if "certificate_name" in given
                    else None,
                    models=None if "*" in names else names,
                    manage=self.typed(given.get("manage", False), f"{key}.manage", bool),
                )
            )
        return tuple(grants)

    def _secret(self, path: object, key: str) -> str:
        file = self.readable(path, key)
        token = file.read_bytes().strip()
        # What was seen is a secret: say only what is wrong with it.
        if not token:
            self.fail(key, f"{str(file)!r}, which is empty", "a file with one token", "write a token into it")
        if any(not 33 <= byte <= 126 for byte in token):
            self.fail(
                key,
                f"{str(file)!r}, whose token has spaces, control or non-ASCII characters",
                "a file with one token of printable ASCII characters",
                "write another token into it",
            )
        return token.decode("ascii")

    def _mqtt(self, document: object) -> Mqtt | None:
        if document is None:
            return None
        given = self.mapping(
            document,
            "mqtt",
            required=("host", "device"),
            optional=(
                "port",
                "topic_prefix",
                "tls",
                "username",
                "password_file",
                "keep_alive_seconds",
                "receive_maximum",
                "session_expiry_seconds",
                "publish_results",
            ),
        )
        tls = given.get("tls")
        files = {} if tls is None else self.mapping(tls, "mqtt.tls", ("ca",), ("certificate", "key"))
        if ("certificate" in files) != ("key" in files):
            self.fail("mqtt.tls", "one of certificate and key", "both or none of them", "add the other one")
        password = given.get("password_file")
        if password is not None and given.get("username") is None:
            self.fail("mqtt.password_file", "no mqtt.username", "both or none of them", "add the user's name")
        segment = "text without '+', '#', empty levels and a '$' at the start"
        return Mqtt(
            host=self.matching(given["host"], "mqtt.host", _HOST, "a host name or an IP address"),
            port=self.integer(given.get("port", 8883 if files else 1883), "mqtt.port", 1, 65535),
            device=self.matching(given["device"], "mqtt.device", _TOPIC, segment),
            topic_prefix=self.matching(given.get("topic_prefix", "edgeml"), "mqtt.topic_prefix", _TOPIC, segment),
            ca=self.readable(files["ca"], "mqtt.tls.ca") if files else None,
            certificate=self.readable(files["certificate"], "mqtt.tls.certificate") if "key" in files else None,
            key=self.readable(files["key"], "mqtt.tls.key") if "key" in files else None,
            username=None if given.get("username") is None else self.typed(given["username"], "mqtt.username", str),
            password=None if password is None else self._secret(password, "mqtt.password_file"),
            keep_alive_seconds=self.integer(given.get("keep_alive_seconds", 30), "mqtt.keep_alive_seconds", 1, 65535),
            receive_maximum=self.integer(given.get("receive_maximum", 32), "mqtt.receive_maximum", 1, 65535),
            session_expiry_seconds=self.integer(
                given.get("session_expiry_seconds", 86400), "mqtt.session_expiry_seconds", 1, 2**32 - 1
            ),
            publish_results=self.typed(given.get("publish_results", False), "mqtt.publish_results", bool),
        )

    def _limits(self, document: object) -> Limits:
        names = [limit.name for limit in fields(Limits)]
        given = self.mapping(document, "limits", optional=names)
        values: dict[str, Any] = {}
        for name, value in given.items():
            key = f"limits.{name}"
            if name.endswith("_seconds"):
                values[name] = self.number(value, key, 0.1, 86400)
            else:
                values[name] = self.integer(value, key, 1, 2**31 - 1)
        return Limits(**values)

    def _models(self, documents: object) -> tuple[ModelConfig, ...]:
        models: list[ModelConfig] = []
        for index, document in enumerate(self.typed(documents, "models", list)):
            key = f"models[{index}]"
            model = self.mapping(
                document, key, required=("name", "version", "path"), optional=("digest", "options", "protocols")
            )
            name = self.matching(model["name"], f"{key}.name", _NAME, "letters, digits, '.', '_' and '-'")
            version = self.matching(
                model["version"], f"{key}.version", _VERSION, "a version of three parts such as '1.0.0'"
            )
            if any((other.name, other.version) == (name, version) for other in models):
                self.fail(f"{key}.name", f"{name!r} {version}", "each version of a model once", "remove one of the two")
            digest = model.get("digest", "")
            if digest != "":
                self.matching(digest, f"{key}.digest", _DIGEST, "'sha256:' and 64 lower-case hexadecimal digits")
            models.append(
                ModelConfig(
                    name=name,
                    version=version,
                    digest=digest,
                    path=Path(self.typed(model["path"], f"{key}.path", str)),
                    overrides=self._overrides(model.get("options", {}), f"{key}.options"),
                    where=f"{self.file}: {key}",
                    protocols=self._protocols(model, key),
                )
            )
        if not models:
            self.fail("models", "no model", "at least one model", "add a model")
        return tuple(models)

    def _protocols(self, model: dict[str, Any], key: str) -> tuple[str, ...]:
        names = self.typed(model.get("protocols", list(INFERENCE_PROTOCOLS)), f"{key}.protocols", list)
        if not names:
            self.fail(f"{key}.protocols", "no protocol", "at least one", "add one, or leave the key out for all")
        return tuple(
            self.choice(name, f"{key}.protocols[{index}]", INFERENCE_PROTOCOLS) for index, name in enumerate(names)
        )

    def _overrides(self, document: object, key: str) -> dict[str, Any]:
        read_overrides(self, document, key, ServingOptions())  # mistakes are told at the start, not at loading
        overrides: dict[str, Any] = self.typed(document, key, dict)
        return overrides


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
