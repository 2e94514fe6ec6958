# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""A client over REST: one keep-alive connection of http.client, over TCP, TLS or a unix socket.

Tensors go in JSON, or in binary where the server has the binary tensor data extension.
"""

import http.client
import json
import socket
import ssl
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

import orjson

from edgeml_runtime.client.protocol import (
    Access,
    IndexEntry,
    Inputs,
    ModelMetadata,
    Parameters,
    Refused,
    ServerMetadata,
    Target,
    Unreachable,
    tensor,
)
from edgeml_runtime.errors import ConfigurationError
from edgeml_runtime.tensors import Array, TensorSpec, to_raw, to_values

_JSON_LENGTH = "Inference-Header-Content-Length"
_BINARY = "binary_tensor_data"

_Request = tuple[str, bytes, dict[str, str]]
_Answer = tuple[int, http.client.HTTPMessage, bytes]


class RestClient:
    """A protocol.Client, which says more of each method."""

    def __init__(self, target: Target, access: Access) -> None:
        self._target = target
        self._timeout = access.timeout
        self._headers = {"Authorization": f"Bearer {access.token}"} if access.token else {}
        self._context = _tls(access) if target.tls else None
        self._connection: http.client.HTTPConnection | None = None
        self._binary: bool | None = None

    def live(self) -> bool:
        """Whether the server lives."""
        return self._status("/v2/health/live", "live")

    def ready(self) -> bool:
        """Whether the server is ready."""
        return self._status("/v2/health/ready", "ready")

    def server_metadata(self) -> ServerMetadata:
        """What the server says of itself."""
        document = self._document("GET", "/v2")
        try:
            return ServerMetadata(
                str(document["name"]), str(document.get("version", "")), tuple(document.get("extensions") or ())
            )
        except (KeyError, TypeError, AttributeError):
            raise Refused(f"GET /v2: no metadata of a server: {_shortened(document)}") from None

    def model_ready(self, name: str, version: str) -> bool:
        """Whether a model is ready."""
        return self._status(f"{_path(name, version)}/ready", "ready")

    def model_metadata(self, name: str, version: str) -> ModelMetadata:
        """What the server says of a model."""
        path = _path(name, version)
        document = self._document("GET", path)
        try:
            return ModelMetadata(
                name=str(document["name"]),
                versions=tuple(map(str, document.get("versions") or ())),
                platform=str(document.get("platform", "")),
                inputs=_specs(document.get("inputs")),
                outputs=_specs(document.get("outputs")),
            )
        except (KeyError, TypeError, ValueError, AttributeError):
            raise Refused(f"GET {path}: no metadata of a model: {_shortened(document)}") from None

    def index(self) -> list[IndexEntry]:
        """All models of the server."""
        path = "/v2/repository/index"
        document = self._document("POST", path, b"{}")
        try:
            return [
                IndexEntry(*(str(entry.get(key) or "") for key in ("name", "version", "state", "reason")))
                for entry in document
            ]
        except (TypeError, AttributeError):
            raise Refused(f"POST {path}: no list of models: {_shortened(document)}") from None

    def encode(
        self, name: str, version: str, inputs: Inputs, outputs: Sequence[str], parameters: Parameters
    ) -> _Request:
        """A request, ready to be sent."""
        if self._binary is None:
            self._binary = _BINARY in self.server_metadata().extensions
        raw: list[bytes | memoryview] = []
        tensors: list[dict[str, Any]] = []
        for spec, array in inputs:
            described: dict[str, Any] = {"name": spec.name, "datatype": spec.datatype, "shape": array.shape}
            if self._binary:
                raw.append(to_raw(array))
                described["parameters"] = {"binary_data_size": len(raw[-1])}
            else:
                described["data"] = to_values(array)
            tensors.append(described)
        document: dict[str, Any] = {"inputs": tensors}
        if outputs:
            in_binary = {"parameters": {"binary_data": True}} if self._binary else {}
            document["outputs"] = [{"name": output, **in_binary} for output in outputs]
        elif self._binary:
            parameters = {**parameters, "binary_data_output": True}
        if parameters:
            document["parameters"] = parameters
        head = orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
        headers = {"Content-Type": "application/json"}
        if self._binary:
            headers = {"Content-Type": "application/octet-stream", _JSON_LENGTH: str(len(head))}
        return f"{_path(name, version)}/infer", b"".join((head, *raw)), headers

    def exchange(self, request: _Request) -> _Answer:
        """Send a request and receive the whole answer."""
        path, body, headers = request
        return self._accepted("POST", path, self._ask("POST", path, body, headers))

    def decode(self, answer: _Answer) -> dict[str, Array]:
        """The output tensors of an answer, by name."""
        _status, headers, body = answer
        length = headers.get(_JSON_LENGTH, "")
        split = int(length) if length.isdecimal() else len(body)
        binary = memoryview(body)[split:]
        outputs: dict[str, Array] = {}
        try:
            for output in json.loads(body[:split])["outputs"]:
                size = (output.get("parameters") or {}).get("binary_data_size")
                where = (output["name"], output["datatype"], output["shape"])
                if size is None:
                    outputs[output["name"]] = tensor(*where, values=output["data"])
                else:
                    outputs[output["name"]] = tensor(*where, raw=bytes(binary[:size]))
                    binary = binary[size:]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise Refused(f"the answer is no inference: {type(error).__name__} {error}") from None
        return outputs

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _status(self, path: str, key: str) -> bool:
        """Whether the answer is 200, and its body, if it has one, does not say otherwise."""
        answer = self._ask("GET", path)
        if answer[0] in (401, 403, 404):
            self._accepted("GET", path, answer)
        try:
            said = json.loads(answer[2])
        except ValueError:
            said = None
        return answer[0] == 200 and not (isinstance(said, dict) and said.get(key) is False)

    def _document(self, method: str, path: str, body: bytes | None = None) -> Any:
        answer = self._accepted(method, path, self._ask(method, path, body, {"Content-Type": "application/json"}))
        try:
            return json.loads(answer[2])
        except ValueError:
            raise Refused(f"{method} {path}: the answer is no JSON: {_shortened(answer[2])}") from None

    def _accepted(self, method: str, path: str, answer: _Answer) -> _Answer:
        status, _headers, body = answer
        if status == 200:
            return answer
        try:
            said = str(json.loads(body)["error"])
        except (ValueError, KeyError, TypeError):
            said = _shortened(body)
        raise Refused(f"{method} {path}: HTTP {status} {said}")

    def _ask(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> _Answer:
        try:
            if self._connection is None:
                self._connection = self._connect()
            self._connection.request(method, self._target.prefix + path, body, {**self._headers, **(headers or {})})
            response = self._connection.getresponse()
            return response.status, response.headers, response.read()
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise Unreachable(str(error) or type(error).__name__) from None

    def _connect(self) -> http.client.HTTPConnection:
        target = self._target
        if target.path:
            connection = http.client.HTTPConnection(target.host, timeout=self._timeout)
            connection.sock = socket.socket(socket.AF_UNIX)
            connection.sock.settimeout(self._timeout)
            connection.sock.connect(target.path)
            return connection
        if self._context is not None:
            return http.client.HTTPSConnection(target.host, target.port, timeout=self._timeout, context=self._context)
        return http.client.HTTPConnection(target.host, target.port, timeout=self._timeout)


def _tls(access: Access) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=access.ca)
        if access.certificate is not None:
            context.load_cert_chain(access.certificate, access.key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(
            "command line", "--ca, --cert, --key", f"files that cannot be used ({error})", "PEM files that fit"
        ) from None
    return context


def _path(name: str, version: str) -> str:
    path = f"/v2/models/{quote(name, safe='')}"
    return f"{path}/versions/{quote(version, safe='')}" if version else path


def _specs(tensors: Any) -> list[TensorSpec]:
    return [
        TensorSpec(str(given["name"]), str(given["datatype"]), tuple(int(size) for size in given["shape"]))
        for given in tensors or ()
    ]


def _shortened(said: object) -> str:
    text = said.decode(errors="replace") if isinstance(said, bytes) else str(said)
    return text if len(text) <= 200 else text[:197] + "..."
