# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A small server with the API of AWX as api.yml records it: it stores objects, and refuses what AWX refuses."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import yaml

RECORDED: dict[str, Any] = yaml.safe_load((Path(__file__).with_name("api.yml")).read_text())
RESOURCES: dict[str, Any] = RECORDED["resources"]
LAUNCHED = ("projects", "job_templates", "workflow_job_templates", "inventory_sources", "workflow_approval_templates")
Object = dict[str, Any]


class Refused(Exception):
    """What AWX answers with status 400."""


class Awx:
    """The objects, by resource and id; `unknown` lists fields that were sent and that the API does not have."""

    def __init__(self, token: str) -> None:
        self.token = token
        self.objects: dict[str, dict[int, Object]] = {name: {} for name in RESOURCES}
        self.lists: dict[tuple[int, str], list[int]] = {}
        self.surveys: dict[int, Object] = {}
        self.secrets: dict[int, Object] = {}
        self.unknown: set[str] = set()
        self.writes: list[str] = []
        self.last = 0
        for kind in ("Machine", "Vault"):
            self.create("credential_types", {"name": kind, "kind": "cloud"})
        self.create("organizations", {"name": "Default"})
        self.writes.clear()

    def named(self, resource: str, name: str) -> Object:
        return next(item for item in self.objects[resource].values() if item.get("name") == name)

    def find(self, resource: str, query: dict[str, str]) -> list[Object]:
        query = {key: value for key, value in query.items() if key not in ("page_size", "page")}
        resources = LAUNCHED if resource == "unified_job_templates" else (resource,)
        found = [self.shown(name, item) for name in resources for item in self.objects[name].values()]
        return [item for item in found if all(str(item.get(key)) == value for key, value in query.items())]

    def create(self, resource: str, data: Object) -> Object:
        described = RESOURCES[resource]
        missing = [field for field in described["required"] if data.get(field) in (None, "")]
        if missing:
            raise Refused({field: ["This field is required."] for field in missing})
        same = [item for item in self.objects[resource].values() if "name" in data and item["name"] == data["name"]]
        if same and resource not in ("workflow_approval_templates", "schedules"):
            raise Refused({"__all__": [f"{resource} with this name already exists."]})
        self.last += 1
        item: Object = {"id": self.last, "description": ""}
        self.objects[resource][self.last] = item
        try:
            return self.write(resource, item, data)
        except Refused:
            del self.objects[resource][item["id"]]
            raise

    def write(self, resource: str, item: Object, data: Object) -> Object:
        described = RESOURCES[resource]
        writable = f"{described['fields']} {described.get('more', '')}".split()
        ignored = RECORDED["ignored"].get(resource, [])
        self.unknown |= {f"{resource}.{field}" for field in data if field not in writable and field not in ignored}
        data = {field: value for field, value in data.items() if field in writable}
        for field, target in described.get("refers", {}).items():
            if data.get(field) is not None and data[field] not in self.objects[target]:
                raise Refused({field: [f'Invalid pk "{data[field]}" - object does not exist.']})
        for field, choices in described.get("choices", {}).items():
            if field in data and data[field] not in choices:
                raise Refused({field: [f'"{data[field]}" is not a valid choice.']})
        if data.get("extra_data"):
            self._check_prompts(item.get("unified_job_template", data.get("unified_job_template")), data["extra_data"])
        if "playbook" in data and not data["playbook"].endswith(".yml"):
            raise Refused({"playbook": ["Playbook not found for project."]})
        if resource == "credentials":
            fields = self.objects["credential_types"][data["credential_type"]].get("inputs", {}).get("fields", [])
            secret = {field["id"] for field in fields if field.get("secret")}
            self.secrets.setdefault(item["id"], {}).update(data.get("inputs", {}))
            data["inputs"] = {
                key: "$encrypted$" if key in secret else value for key, value in data.get("inputs", {}).items()
            }
        for field, source in described.get("derived", {}).items():
            if source in data:
                item[field] = self.objects[f"{source}s"][data[source]].get(field)
        item |= data
        self.writes.append(f"{resource} {item.get('name') or item.get('identifier')}")
        return self.shown(resource, item)

    def _check_prompts(self, template: int | None, answers: Object) -> None:
        asked = {question["variable"] for question in self.surveys.get(template or 0, {}).get("spec", [])}
        if set(answers) - asked:
            raise Refused({"extra_data": [f"Variables {sorted(set(answers) - asked)} are not allowed on launch."]})

    def set_survey(self, template: int, spec: Object) -> None:
        """Check a survey by the rules of AWX's JobTemplateSurveySpec."""
        if not {"name", "description", "spec"} <= set(spec) or not spec["spec"]:
            raise Refused({"error": "'spec' doesn't contain any items."})
        variables = [question["variable"] for question in spec["spec"]]
        if len(set(variables)) != len(variables):
            raise Refused({"error": "'variable' duplicated in survey."})
        for question in spec["spec"]:
            kind, default = question["type"], question.get("default", "")
            if kind not in ("text", "textarea", "password", "integer", "float", "multiplechoice", "multiselect"):
                raise Refused({"error": f"'{kind}' is not one of the allowed types."})
            if not {"question_name", "variable", "required"} <= set(question):
                raise Refused({"error": f"A field is missing in {question}."})
            if kind == "multiplechoice" and default not in question["choices"]:
                raise Refused({"error": f"Default {default} is not among the choices."})
            if kind == "integer" and not (isinstance(default, int) and question["min"] <= default <= question["max"]):
                raise Refused({"error": f"Default {default} is out of range."})
            if kind == "text" and not (isinstance(default, str) and question["min"] <= len(default) <= question["max"]):
                raise Refused({"error": f"Default {default!r} has a wrong length."})
        self.surveys[template] = spec
        self.writes.append(f"survey {template}")

    def shown(self, resource: str, item: Object) -> Object:
        url = f"/api/v2/{resource}/{item['id']}/"
        related = {name: f"{url}{name}/" for name in (*RESOURCES[resource].get("lists", {}), "survey_spec")}
        if item.get("unified_job_template") and resource == "workflow_job_template_nodes":
            approval = item["unified_job_template"] in self.objects["workflow_approval_templates"]
            kind = "workflow_approval_templates" if approval else "job_templates"
            related["unified_job_template"] = f"/api/v2/{kind}/{item['unified_job_template']}/"
        item = {**item, **RECORDED["shown"].get(resource, {})}
        return {**item, "type": RESOURCES[resource]["type"], "url": url, "related": related, "summary_fields": {}}

    def answer(self, method: str, path: list[str], query: dict[str, str], data: Object) -> tuple[int, Object]:
        """Return status and body for a request below /api/v2/."""
        resource = path[0]
        if len(path) == 1:
            if method == "POST":
                return 201, self.create(resource, data)
            found = self.find(resource, query)
            return 200, {"count": len(found), "next": None, "results": found}
        item = self.objects[resource].get(int(path[1]))
        if item is None:
            return 404, {"detail": "Not found."}
        if len(path) == 2:
            return 200, self.write(resource, item, data) if method == "PATCH" else self.shown(resource, item)
        if path[2] == "survey_spec":
            if method == "POST":
                self.set_survey(item["id"], data)
            return 200, self.surveys.get(item["id"], {})
        if path[2] == "create_approval_template":
            made = self.create("workflow_approval_templates", data)
            item["unified_job_template"] = made["id"]
            return 201, made
        target = RESOURCES[resource].get("lists", {}).get(path[2])
        if target is None:
            return 404, {"detail": "Not found."}
        members = self.lists.setdefault((item["id"], path[2]), [])
        if method == "POST":
            members.remove(data["id"]) if data.get("disassociate") else members.append(data["id"])
            self.writes.append(f"{path[2]} of {item.get('name')}")
            return 204, {}
        found = [self.shown(target, self.objects[target][member]) for member in members]
        return 200, {"count": len(found), "next": None, "results": found}


class _Handler(BaseHTTPRequestHandler):
    awx: Awx
    lock = threading.Lock()

    def _handle(self) -> None:
        parts = urlsplit(self.path)
        path = parts.path.strip("/").split("/")[2:]
        length = int(self.headers.get("Content-Length") or 0)
        data = json.loads(self.rfile.read(length) or b"{}")
        body: Any
        if self.headers.get("Authorization") != f"Bearer {self.awx.token}":
            status, body = 401, {"detail": "Authentication credentials were not provided."}
        elif not path or path[0] not in {*RESOURCES, "unified_job_templates"}:
            status, body = 404, {"detail": "Not found."}
        else:
            try:
                with self.lock:
                    status, body = self.awx.answer(self.command, path, dict(parse_qsl(parts.query)), data)
            except Refused as refused:
                status, body = 400, refused.args[0]
        content = b"" if status == 204 else json.dumps(body).encode()
        self.send_response(status)
        for name, value in (("X-API-Product-Name", "AWX"), ("X-API-Product-Version", RECORDED["version"])):
            self.send_header(name, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PATCH = do_DELETE = _handle

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@contextmanager
def running(token: str) -> Iterator[tuple[Awx, str]]:
    """Run the server; yield its objects and its address."""
    awx = Awx(token)
    handler = type("Handler", (_Handler,), {"awx": awx})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield awx, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def main() -> None:
    """Run the server on the port that the command line names, with the token of AWX_TOKEN."""
    handler = type("Handler", (_Handler,), {"awx": Awx(os.environ["AWX_TOKEN"])})
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), handler).serve_forever()


if __name__ == "__main__":
    main()
