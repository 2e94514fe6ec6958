# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The Open Inference Protocol v2 over HTTP, with the standard library alone."""

from __future__ import annotations

import contextlib
import http.client
import json
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote as quote_path
from urllib.parse import urlsplit

from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._inference.client import (
    Access,
    Client,
    ModelMetadata,
    PreparedRequest,
    RawResponse,
    ServerMetadata,
    Status,
    TensorMetadata,
    model_subject,
)
from ansible_collections.edgeml.fleet.plugins.module_utils._inference.sockets import open_socket, tls_context
from ansible_collections.edgeml.fleet.plugins.module_utils._inference.tensor import Tensor

JSON_SIZE_HEADER = "Inference-Header-Content-Length"


class RestClient(Client):
    """A client over one keep-alive connection: TCP in clear, TCP with TLS, or a unix socket."""

    def __init__(self, access: Access) -> None:
        super().__init__(access)
        self._connection = _Connection(access)
        self._headers = {} if access.bearer_token is None else {"Authorization": f"Bearer {access.bearer_token}"}
        if access.server_name:
            self._headers["Host"] = access.authority

    def live(self) -> Status:
        return self._status("/v2/health/live", "live")

    def ready(self) -> Status:
        return self._status("/v2/health/ready", "ready")

    def server_metadata(self) -> ServerMetadata:
        document = self._document("/v2", "the server's metadata")
        try:
            return ServerMetadata(
                str(document["name"]), str(document.get("version", "")), tuple(document.get("extensions") or ())
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise self.misunderstood("the server's metadata", f"{error!r} in {document}") from error

    def model_ready(self, name: str, version: str = "") -> Status:
        return self._status(_model_path(name, version) + "/ready", "ready")

    def model_metadata(self, name: str, version: str = "") -> ModelMetadata:
        subject = model_subject(name, version)
        document = self._document(_model_path(name, version), subject)
        try:
            return ModelMetadata(
                name=document["name"],
                versions=tuple(document.get("versions") or ()),
                platform=document.get("platform", ""),
                inputs=_tensors_metadata(document["inputs"]),
                outputs=_tensors_metadata(document["outputs"]),
                provider=str((document.get("properties") or {}).get("provider", "")),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise self.misunderstood(subject, f"{error!r} in {document}") from error

    def prepare(
        self, name: str, version: str, inputs: Sequence[Tensor], outputs: Sequence[str] = (), *, binary: bool = True
    ) -> PreparedRequest:
        document: dict[str, Any] = {}
        headers = dict(self._headers)
        if binary:
            document["inputs"] = [
                {
                    "name": tensor.name,
                    "shape": list(tensor.shape),
                    "datatype": tensor.datatype,
                    "parameters": {"binary_data_size": len(tensor.raw)},
                }
                for tensor in inputs
            ]
            document["parameters"] = {"binary_data_output": True}
        else:
            try:
                document["inputs"] = [tensor.to_json() for tensor in inputs]
            except ValueError as error:
                raise FleetError(
                    f"The request for {model_subject(name, version)} cannot be written in JSON",
                    where=self.endpoint,
                    seen=str(error),
                    remedy="use binary tensors or a gRPC endpoint",
                ) from error
        if outputs:
            document["outputs"] = [{"name": output, "parameters": {"binary_data": binary}} for output in outputs]
        body = json.dumps(document).encode()
        if binary:
            headers.update({"Content-Type": "application/octet-stream", JSON_SIZE_HEADER: str(len(body))})
            body += b"".join(tensor.raw for tensor in inputs)
        else:
            headers["Content-Type"] = "application/json"
        return PreparedRequest(model_subject(name, version), _model_path(name, version) + "/infer", headers, body)

    def send(self, request: PreparedRequest) -> RawResponse:
        response, body = self._exchange("POST", request.path, request.headers, request.body)
        if response.status != http.HTTPStatus.OK:
            raise self._error(request.model, response, body)
        json_size = response.headers.get(JSON_SIZE_HEADER)
        return RawResponse(request.model, body, int(json_size) if json_size and json_size.isdecimal() else None)

    def decode(self, response: RawResponse) -> list[Tensor]:
        body = memoryview(response.body)
        position = len(body) if response.json_size is None else response.json_size
        tensors = []
        try:
            for output in json.loads(bytes(body[:position]))["outputs"]:
                size = (output.get("parameters") or {}).get("binary_data_size")
                if size is None:
                    tensors.append(Tensor.from_json(output))
                else:
                    raw = bytes(body[position : position + size])
                    tensors.append(Tensor(output["name"], output["datatype"], tuple(output["shape"]), raw))
                    position += size
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise self.misunderstood(response.model, str(error) or repr(error)) from error
        return tensors

    def close(self) -> None:
        self._connection.close()

    def _status(self, path: str, key: str) -> Status:
        """Ask a health question: answered by the status code and, by some servers, by a boolean in the body too."""
        response, body = self._exchange("GET", path, self._headers)
        if response.status in (http.HTTPStatus.UNAUTHORIZED, http.HTTPStatus.FORBIDDEN):
            raise self.denied(_words(response, body))
        ok = response.status == http.HTTPStatus.OK
        if ok and body:
            with contextlib.suppress(ValueError):
                document = json.loads(body)
                ok = not isinstance(document, dict) or document.get(key, True) is True
        return Status(ok, _words(response, body))

    def _document(self, path: str, subject: str) -> Any:
        response, body = self._exchange("GET", path, self._headers)
        if response.status != http.HTTPStatus.OK:
            raise self._error(subject, response, body)
        try:
            return json.loads(body)
        except ValueError as error:
            raise self.misunderstood(subject, f"{error} in {body[:80]!r}") from error

    def _error(self, subject: str, response: http.client.HTTPResponse, body: bytes) -> FleetError:
        if response.status in (http.HTTPStatus.UNAUTHORIZED, http.HTTPStatus.FORBIDDEN):
            return self.denied(_words(response, body))
        return self.refused(subject, _words(response, body))

    def _exchange(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes | None = None
    ) -> tuple[http.client.HTTPResponse, bytes]:
        reused = self._connection.sock is not None
        try:
            try:
                return self._connection.exchange(method, path, headers, body)
            except ConnectionError:
                # A server may close an idle connection just when the next request is sent.
                if not reused:
                    raise
                self._connection.close()
                return self._connection.exchange(method, path, headers, body)
        except OSError as error:
            self._connection.close()
            raise self.unconnected(error) from error
        except http.client.HTTPException as error:
            self._connection.close()
            raise self.misunderstood(path, repr(error)) from error


class _Connection(http.client.HTTPConnection):
    """HTTP over TCP, over TLS with a name of its own, or over a unix socket."""

    def __init__(self, access: Access) -> None:
        parts = urlsplit("//localhost" if access.unix else f"//{access.address}")
        super().__init__(parts.hostname or "", parts.port, timeout=access.timeout)
        self._access = access
        self._context = tls_context(access) if access.tls else None

    def connect(self) -> None:
        self.sock = open_socket(self._access, self._context)

    def exchange(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes | None
    ) -> tuple[http.client.HTTPResponse, bytes]:
        self.request(method, path, body, headers)
        response = self.getresponse()
        return response, response.read()


def _model_path(name: str, version: str) -> str:
    path = f"/v2/models/{quote_path(name, safe='')}"
    return f"{path}/versions/{quote_path(version, safe='')}" if version else path


def _tensors_metadata(documents: Any) -> tuple[TensorMetadata, ...]:
    return tuple(TensorMetadata(item["name"], item["datatype"], tuple(map(int, item["shape"]))) for item in documents)


def _words(response: http.client.HTTPResponse, body: bytes) -> str:
    """Return status and error text of a response."""
    text = body.decode(errors="replace")
    with contextlib.suppress(ValueError):
        document = json.loads(body)
        if isinstance(document, dict):
            text = str(document.get("error", text))
    return f"HTTP {response.status} {text}".strip()
