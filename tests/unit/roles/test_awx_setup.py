# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What awx_setup makes is data; tests/awx has an AWX take it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.parsing.dataloader import DataLoader
from ansible_collections.edgeml.fleet.tests.awx.server import Awx, Refused

ROOT = Path(__file__).resolve().parents[3]
DATA: dict[str, Any] = DataLoader().load_from_file(str(ROOT / "roles/awx_setup/vars/main.yml"))
TEMPLATES: dict[str, Any] = {item["playbook"]: item for item in DATA["__awx_setup_job_templates"]}
SHARED = {f"{{{{ {name} }}}}": value for name, value in DATA.items() if name.startswith("__awx_setup_survey")}


def survey(template: str) -> list[dict[str, Any]]:
    questions = TEMPLATES[template].get("survey", [])
    return [SHARED[question] if isinstance(question, str) else question for question in questions]


def test_there_is_a_template_for_each_playbook_that_people_run() -> None:
    parts = {"compare_devices", "compare_mirrors", "require_controller", "quickstart", "remove", "awx_setup"}
    assert set(TEMPLATES) == {path.stem for path in (ROOT / "playbooks").glob("*.yml")} - parts


def test_nothing_that_publishes_or_signs_is_sliced() -> None:
    assert {name for name, item in TEMPLATES.items() if item.get("sliced")} == {
        "plan",
        "preflight",
        "rollout",
        "verify",
    }


@pytest.mark.parametrize("template", [name for name, item in TEMPLATES.items() if "survey" in item])
def test_awx_takes_the_surveys(template: str) -> None:
    awx = Awx("")
    awx.set_survey(1, {"name": template, "description": "", "spec": survey(template)})
    with pytest.raises(Refused):
        awx.set_survey(1, {"name": template, "description": "", "spec": survey(template) * 2})


def test_versions_and_releases_are_asked_for_as_text() -> None:
    questions = {item["variable"]: item for name in TEMPLATES for item in survey(name)}
    assert questions["edgeml_release"]["type"] == "text"


def test_steps_of_the_workflow_name_templates_and_steps_that_are_there() -> None:
    seen: set[str] = set()
    for step in DATA["__awx_setup_workflow"]:
        assert {*step.get("success", []), *step.get("failure", [])} <= seen, "a step is made after those that follow it"
        assert step.get("template") in {*TEMPLATES, None}
        if "canary" in step:
            assert "edgeml_devices" in {question["variable"] for question in survey(step["template"])}
        seen.add(step["step"])
    defaults = yaml.safe_load((ROOT / "roles/awx_setup/defaults/main.yml").read_text())
    assert defaults["awx_setup_schedules"].keys() <= set(TEMPLATES)
