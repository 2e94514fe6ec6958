# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""The OpenAPI 3.1 document of the REST listeners, served at ``/openapi.json``."""

from typing import Any

import orjson

from edgeml_runtime import __version__
from edgeml_runtime.tensors import DTYPES

_Object = dict[str, Any]

_FAILURES = {
    "400": "The request breaks the protocol or does not fit the model.",
    "401": "No known bearer token or client certificate.",
    "403": "The client may not do this.",
    "404": "No such path, model or version.",
    "405": "Another method than the allowed ones.",
    "408": "The request was not complete in time.",
    "413": "The body, its tensors or their elements are beyond a limit.",
    "429": "The model has as many requests under way as it takes.",
    "431": "The header is beyond its limit.",
    "500": "The model or the server failed.",
    "503": "The model is not loaded, the server stops, or there are too many connections.",
    "504": "No answer within the deadline.",
}
# Whatever the path: by what HTTP and access control alone can refuse.
_ALWAYS = ("400", "405", "408", "413", "431", "500", "503")
_GUARDED = (*_ALWAYS, "401", "403")


def openapi() -> bytes:
    """The document, as JSON."""
    return orjson.dumps(
        {
            "openapi": "3.1.0",
            "info": {
                "title": "edgeml-runtime",
                "version": __version__,
                "description": "Open Inference Protocol v2 over REST, with model repository and binary tensors.",
                "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
            },
            "paths": _paths(),
            "components": {
                "schemas": _schemas(),
                "parameters": {
                    "model": _path_parameter("model", "Name of a model."),
                    "version": _path_parameter("version", "Version of the model; without it, the first one."),
                    "json_length": {
                        "name": "Inference-Header-Content-Length",
                        "in": "header",
                        "description": "Bytes of the JSON part, when binary tensor data follows it.",
                        "schema": {"type": "integer", "minimum": 0},
                    },
                },
                "responses": {_response_name(code): _error_response(code) for code in _FAILURES},
                "securitySchemes": {
                    "token": {"type": "http", "scheme": "bearer"},
                    "certificate": {"type": "mutualTLS"},
                },
            },
            "security": [{}, {"token": []}, {"certificate": []}],
        }
    )


def _paths() -> _Object:
    paths: _Object = {
        "/v2/health/live": _get("live", "Whether the server answers.", "Live", _ALWAYS, security=[{}]),
        "/v2/health/ready": _get("ready", "Whether all models are loaded.", "Ready", _ALWAYS, "Ready", security=[{}]),
        "/v2": _get("server_metadata", "Name, version and extensions of the server.", "ServerMetadata", _GUARDED),
        "/openapi.json": _get("openapi", "This document.", None, _GUARDED),
        "/v2/repository/index": _post("index", "The configured models and their states.", "Index", "IndexRequest"),
    }
    for action, summary in (
        ("load", "Load what the configuration says of a model, then switch to it."),
        ("unload", "Stop serving a model; requests under way finish."),
    ):
        path = _post(action, summary, "Nothing", "ManagementRequest", "404")
        paths[f"/v2/repository/models/{{model}}/{action}"] = path | {"parameters": [_reference("parameters", "model")]}
    for prefix, suffix, names in (
        ("/v2/models/{model}", "", ("model",)),
        ("/v2/models/{model}/versions/{version}", "_of_version", ("model", "version")),
    ):
        parameters = {"parameters": [_reference("parameters", name) for name in names]}
        failures = (*_GUARDED, "404")
        metadata = _get(f"model_metadata{suffix}", "Inputs and outputs of a model.", "ModelMetadata", failures)
        ready = _get(f"model_ready{suffix}", "Whether a model is loaded.", "ModelReady", failures, "ModelReady")
        paths[prefix] = metadata | parameters
        paths[f"{prefix}/ready"] = ready | parameters
        paths[f"{prefix}/infer"] = _infer(f"infer{suffix}") | parameters
    return paths


def _get(
    operation: str,
    summary: str,
    schema: str | None,
    failures: tuple[str, ...],
    unavailable: str | None = None,
    **more: Any,
) -> _Object:
    """``unavailable``: the schema of a 503 that says no, beside the error."""
    answer = _json(_reference("schemas", schema) if schema else {"type": "object"})
    responses = {"200": {"description": "Yes, or what was asked for.", "content": answer}, **_failures(failures)}
    if unavailable:
        either = {"anyOf": [_reference("schemas", unavailable), _reference("schemas", "Error")]}
        responses["503"] = {"description": f"No. {_FAILURES['503']}", "content": _json(either)}
    method = {"summary": summary, "responses": responses, **more}
    head = {**method, "operationId": f"{operation}_head", "responses": _without_bodies(responses)}
    return {"get": {**method, "operationId": operation}, "head": head}


def _without_bodies(responses: _Object) -> _Object:
    return {code: {"description": _FAILURES.get(code, "Yes, or what was asked for.")} for code in responses}


def _post(operation: str, summary: str, schema: str, request: str, *failures: str) -> _Object:
    return {
        "post": {
            "operationId": operation,
            "summary": summary,
            "requestBody": {"required": False, "content": _json(_reference("schemas", request))},
            "responses": {
                "200": {"description": "Done.", "content": _json(_reference("schemas", schema))},
                **_failures((*_GUARDED, *failures)),
            },
        }
    }


def _infer(operation: str) -> _Object:
    digest = {"description": "Digest of the model.", "schema": {"type": "string"}}
    length = {"description": "Bytes of the JSON part.", "schema": {"type": "integer", "minimum": 0}}
    binary: _Object = {"application/octet-stream": {}}
    return {
        "post": {
            "operationId": operation,
            "summary": "Compute outputs from inputs. Bodies may be in gzip or deflate.",
            "parameters": [_reference("parameters", "json_length")],
            "requestBody": {
                "required": True,
                "content": _json(_reference("schemas", "InferenceRequest")) | binary,
            },
            "responses": {
                "200": {
                    "description": "The outputs. With binary outputs the body is JSON followed by their bytes.",
                    "headers": {"X-Edgeml-Model-Digest": digest, "Inference-Header-Content-Length": length},
                    "content": _json(_reference("schemas", "InferenceResponse")) | binary,
                },
                **_failures((*_GUARDED, "404", "429", "504")),
            },
        }
    }


def _schemas() -> _Object:
    text = {"type": "string"}
    datatype = {"enum": list(DTYPES)}
    shape = {"type": "array", "items": {"type": "integer", "minimum": 0}, "maxItems": 64}
    # Numbers, booleans or strings: a flat list in row-major order, or lists nested as the shape says.
    data = {"type": "array", "items": {"type": ["number", "boolean", "string", "array", "null"]}}
    size = {"binary_data_size": {"type": "integer", "minimum": 0}}
    tensor = {"name": text, "datatype": datatype, "shape": shape}
    described = _object(
        {"name": text, "datatype": datatype, "shape": {"type": "array", "items": {"type": "integer", "minimum": -1}}}
    )
    parameters = {
        "binary_data_output": {"type": "boolean"},
        "timeout": {"type": "integer", "minimum": 0, "description": "Microseconds; 0 for the model's own deadline."},
        "sequence_id": {"type": ["integer", "string"]},
        "sequence_start": {"type": "boolean"},
        "sequence_end": {"type": "boolean"},
    }
    requested = _object({"name": text, "parameters": _object({"binary_data": {"type": "boolean"}}, ())}, ("name",))
    given = _object({**tensor, "data": data, "parameters": _object(size, ())}, tuple(tensor))
    answered = _object({**tensor, "data": data, "parameters": _object(size)}, tuple(tensor))
    state = {"enum": ["READY", "LOADING", "UNAVAILABLE"]}
    return {
        "Error": _object({"error": text}),
        "Nothing": {"type": "object", "maxProperties": 0},
        "Live": _object({"live": {"type": "boolean"}}),
        "Ready": _object({"ready": {"type": "boolean"}}),
        "ModelReady": _object({"name": text, "ready": {"type": "boolean"}}),
        "ServerMetadata": _object({"name": text, "version": text, "extensions": _list(text)}),
        "ModelMetadata": _object(
            {
                "name": text,
                "versions": _list(text),
                "platform": text,
                "inputs": _list(described),
                "outputs": _list(described),
                "properties": _object({"provider": text}),
            }
        ),
        "InferenceRequest": _object(
            {"id": text, "parameters": _object(parameters, ()), "inputs": _list(given), "outputs": _list(requested)},
            ("inputs",),
        ),
        "InferenceResponse": _object(
            {"model_name": text, "model_version": text, "id": text, "outputs": _list(answered)},
            ("model_name", "model_version", "outputs"),
        ),
        "IndexRequest": _object({"ready": {"type": "boolean"}}, ()),
        "Index": _list(_object({"name": text, "version": text, "state": state, "reason": text})),
        "ManagementRequest": _object({"parameters": {"type": "object"}}, ()),
    }


def _object(properties: _Object, required: tuple[str, ...] | None = None) -> _Object:
    """An object; all properties are required unless told otherwise."""
    return {"type": "object", "properties": properties, "required": list(properties if required is None else required)}


def _list(items: _Object) -> _Object:
    return {"type": "array", "items": items}


def _json(schema: _Object) -> _Object:
    return {"application/json": {"schema": schema}}


def _reference(kind: str, name: str) -> _Object:
    return {"$ref": f"#/components/{kind}/{name}"}


def _path_parameter(name: str, description: str) -> _Object:
    schema = {"type": "string", "minLength": 1}
    return {"name": name, "in": "path", "required": True, "description": description, "schema": schema}


def _response_name(code: str) -> str:
    return f"Error{code}"


def _failures(codes: tuple[str, ...]) -> _Object:
    return {code: _reference("responses", _response_name(code)) for code in sorted(codes)}


def _error_response(code: str) -> _Object:
    response: _Object = {"description": _FAILURES[code], "content": _json(_reference("schemas", "Error"))}
    header = {"401": "WWW-Authenticate", "405": "Allow", "429": "Retry-After", "503": "Retry-After"}.get(code)
    if header:
        response["headers"] = {header: {"schema": {"type": "string"}}}
    return response
