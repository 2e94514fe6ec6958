# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The rules that keep the parts of this repository apart and their descriptions true."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import inspect
import json
import re
import subprocess
import sys
import sysconfig
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.edgeml.fleet.plugins.filter.fleet import FilterModule
from ansible_collections.edgeml.fleet.plugins.plugin_utils.documents.schema import validate
from jsonschema import Draft202012Validator
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from .role_readme import EXAMPLES, ROLES, render

ROOT = Path(__file__).resolve().parents[2]
COLLECTIONS = Path(sysconfig.get_path("purelib")) / "ansible_collections"
COLLECTION = ("plugins", "roles", "playbooks", "meta")
ROLE_NAMES = sorted(path.name for path in ROLES.iterdir())
MODULES = sorted(path.stem for path in (ROOT / "plugins" / "modules").glob("*.py"))


def tracked(*folders: str) -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", *folders],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def texts(*folders: str) -> Iterator[tuple[Path, str]]:
    for path in tracked(*folders):
        try:
            yield path.relative_to(ROOT), path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue


class Loader(yaml.SafeLoader):
    """Knows what Ansible marks as no template."""


Loader.add_constructor("!unsafe", lambda _, node: node.value)


def load(path: Path) -> Any:
    return yaml.load(path.read_text(), Loader) if path.exists() else {}  # noqa: S506


@pytest.mark.parametrize("role", ROLE_NAMES)
def test_defaults_and_argument_specs_agree(role: str) -> None:
    defaults = load(ROLES / role / "defaults" / "main.yml") or {}
    specs = load(ROLES / role / "meta" / "argument_specs.yml")["argument_specs"]
    options: dict[str, Any] = {}
    for spec in specs.values():
        options |= spec["options"]
    assert set(defaults) == set(options)
    for name, option in options.items():
        assert option.get("description"), name
        if "default" in option:
            assert defaults[name] == option["default"], name
        else:
            assert "{{" in str(defaults[name]), f"{name} has a constant default that its specification lacks"


@pytest.mark.parametrize("role", ROLE_NAMES)
def test_what_was_never_published_can_be_removed(role: str) -> None:
    specs = load(ROLES / role / "meta" / "argument_specs.yml")["argument_specs"]
    defaults = load(ROLES / role / "defaults" / "main.yml") or {}
    for name in specs.get("remove", {"options": {}})["options"]:
        assert "lookup(" not in str(defaults[name]), f"{name} reads a file"


@pytest.mark.parametrize("role", ROLE_NAMES)
def test_role_readme_is_current(role: str) -> None:
    assert (ROLES / role / "README.md").read_text() == render(ROLES / role), (
        "run: python tests/architecture/role_readme.py"
    )


def called_entry_points(tasks: Any) -> Iterator[tuple[str, str]]:
    """Yield (role, entry point) of each include and import in a document of plays or tasks."""
    if isinstance(tasks, dict):
        for key, value in tasks.items():
            if key in ("ansible.builtin.import_role", "ansible.builtin.include_role"):
                yield value["name"].rpartition(".")[2], value.get("tasks_from", "main")
            else:
                yield from called_entry_points(value)
    elif isinstance(tasks, list):
        for task in tasks:
            yield from called_entry_points(task)


def test_entry_points_that_others_call_are_declared() -> None:
    declared = {
        (role, name)
        for role in ROLE_NAMES
        for name in load(ROLES / role / "meta" / "argument_specs.yml")["argument_specs"]
    }
    called = {
        entry
        for path in tracked("playbooks", "roles")
        if path.suffix == ".yml" and path.parent.name in ("tasks", "playbooks")
        for entry in called_entry_points(load(path))
    }
    assert called
    assert sorted(called - declared) == []


def test_each_role_has_an_example_that_ansible_can_read() -> None:
    assert sorted(path.stem for path in EXAMPLES.glob("*.yml")) == ROLE_NAMES
    program = Path(sys.executable).with_name("ansible-playbook")
    read = subprocess.run(
        [program, "--syntax-check", "--inventory", "localhost,", *sorted(EXAMPLES.glob("*.yml"))],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert read.returncode == 0, read.stderr


@pytest.mark.parametrize("role", ROLE_NAMES)
def test_an_example_sets_variables_that_its_role_has(role: str) -> None:
    specs = load(ROLES / role / "meta" / "argument_specs.yml")["argument_specs"]
    options = {name for spec in specs.values() for name in spec["options"]}
    used = [item for play in load(EXAMPLES / f"{role}.yml") for item in play.get("roles", [])]
    mine = [item for item in used if item["role"] == f"edgeml.fleet.{role}"]
    assert mine
    assert {name for item in mine for name in item} - {"role"} <= options


@pytest.mark.parametrize("role", ROLE_NAMES)
def test_role_variables_carry_the_role_name(role: str) -> None:
    names = set(load(ROLES / role / "defaults" / "main.yml") or {}) | set(
        load(ROLES / role / "vars" / "main.yml") or {}
    )
    # The role "defaults" holds what all of them share.
    prefix = "edgeml" if role == "defaults" else role
    assert all(name.startswith((f"{prefix}_", f"__{prefix}_")) for name in names), names


@pytest.mark.parametrize("role", [name for name in ROLE_NAMES if name != "defaults"])
def test_roles_take_shared_defaults_from_one_place(role: str) -> None:
    shared = re.compile(rf"\b({'|'.join(load(ROLES / 'defaults' / 'defaults' / 'main.yml'))})\b")
    used = {name for _, text in texts(f"roles/{role}") for name in shared.findall(text)}
    depends = {"role": "edgeml.fleet.defaults"} in load(ROLES / role / "meta" / "main.yml")["dependencies"]
    assert depends == bool(used), used


def test_modules_are_listed_everywhere() -> None:
    group = load(ROOT / "meta" / "runtime.yml")["action_groups"]["fleet"]
    assert sorted(group) == MODULES
    readme = (ROOT / "README.md").read_text()
    assert [module for module in MODULES if module not in readme] == []
    # What is new since the last release stands in fragments. The rendered page escapes underscores.
    notes = (ROOT / "CHANGELOG.md").read_text().replace("\\", "")
    notes += "".join(path.read_text() for path in (ROOT / "changelogs" / "fragments").glob("*.yml"))
    assert [module for module in MODULES if module not in notes] == []


@pytest.mark.parametrize("module", MODULES)
def test_module_documentation_says_what_it_supports(module: str) -> None:
    path = ROOT / "plugins" / "modules" / f"{module}.py"
    assert len(path.read_text().splitlines()) <= 300, "a module is an argument spec, one call, an exit"
    specification = importlib.util.spec_from_file_location(module, path)
    assert specification and specification.loader
    loaded = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(loaded)
    documentation = yaml.safe_load(loaded.DOCUMENTATION)
    assert {"check_mode", "diff_mode", "idempotent"} <= set(documentation["attributes"])
    assert all(text.strip() for text in (loaded.EXAMPLES, loaded.RETURN))


@pytest.mark.parametrize("module", MODULES)
def test_every_module_runs_through_the_one_funnel(module: str) -> None:
    """What fails looks the same everywhere: only `run` makes an AnsibleModule and ends the process."""
    path = ROOT / "plugins" / "modules" / f"{module}.py"
    tree = ast.parse(path.read_text())
    called = {
        node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
    }
    assert not called & {"AnsibleModule", "exit_json", "fail_json"}
    if (ROOT / "plugins" / "action" / path.name).exists() and not called:
        return  # documentation alone: the work is the action plugin's
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert [ast.unparse(node.value.func) for node in functions["main"].body[1:] if isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Call)] == ["run"]  # fmt: skip


def test_knowledge_goes_one_way_through_the_plugins() -> None:
    """Inventory plugins, filters and actions know plugin_utils alone, this knows module_utils, and never back."""
    allowed = {
        "module_utils": {"module_utils"},
        "modules": {"module_utils"},
        "plugin_utils": {"module_utils", "plugin_utils"},
        "inventory": {"plugin_utils"},
        "filter": {"plugin_utils"},
        "action": {"plugin_utils"},
    }
    everyone = {"module_utils._errors"}
    found = {
        (str(path), used)
        for path, text in texts("plugins")
        for used in re.findall(r"ansible_collections\.edgeml\.fleet\.plugins\.([\w.]+)", text)
        if used not in everyone and used.partition(".")[0] not in allowed.get(path.parts[1], set())
    }
    assert found == set()


def test_what_the_controller_runs_imports_by_statement_only() -> None:
    """An import by a function hides what a file knows."""
    rooms = [f"plugins/{room}" for room in ("action", "filter", "inventory", "plugin_utils")]
    assert [str(path) for path, text in texts(*rooms) if re.search(r"\bimportlib\b|__import__", text)] == []


def test_files_of_the_controllers_half_have_one_job() -> None:
    rooms = [f"plugins/plugin_utils/{room}" for room in ("documents", "placement", "publication", "releases")]
    lengths = {str(path): len(text.splitlines()) for path, text in texts(*rooms)}
    assert {path: lines for path, lines in lengths.items() if lines >= 400} == {}


def test_each_filter_is_documented_and_each_document_has_its_filter() -> None:
    program = Path(sys.executable).with_name("ansible-doc")
    shown = subprocess.run(
        [program, "--type", "filter", "--json", *(f"edgeml.fleet.{name}" for name in sorted(FilterModule().filters()))],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    documents = json.loads(shown.stdout)
    names = {path.stem for path in (ROOT / "plugins" / "filter").glob("*.yml")}
    assert {name.rpartition(".")[2] for name in documents} == names == set(FilterModule().filters())
    for name, plugin in documents.items():
        options = plugin["doc"]["options"]
        positional = plugin["doc"].get("positional", "").split(", ") if plugin["doc"].get("positional") else []
        parameters = inspect.signature(FilterModule().filters()[name.rpartition(".")[2]]).parameters
        assert ["_input", *positional] == [
            *options.keys() & {"_input"},
            *(key for key, value in list(parameters.items())[1:] if value.kind is value.POSITIONAL_OR_KEYWORD),
        ], name
        assert options.keys() - {"_input"} == set(list(parameters)[1:]), name
        assert plugin["examples"].strip(), name
        assert plugin["return"]["_value"]["description"], name


#: What each room of module_utils may import besides itself. A module ships all that it imports to the host.
GROUND = {"_errors", "_canonical"}
ROOMS = {
    "_errors": set(),
    "_canonical": set(),
    "_module": {"_errors", "_host"},
    "_host": GROUND,
    "_inference": GROUND,
    "_oci": {*GROUND, "_host"},
    "_image": {*GROUND, "_host", "_oci"},
    "_model": {*GROUND, "_host", "_oci"},
    "_signature": {*GROUND, "_host", "_oci"},
    "_trial": {*GROUND, "_image", "_inference", "_model"},
    "_mirror": {*GROUND, "_host", "_oci", "_signature"},
    "_preflight": {*GROUND, "_host", "_oci"},
    "_release": {*GROUND, "_host", "_inference", "_oci", "_signature"},
}


def test_rooms_of_module_utils_know_the_floors_below_only() -> None:
    imported = re.compile(r"plugins\.module_utils\.(\w+)")
    for path, text in texts("plugins/module_utils"):
        room = path.parts[2].removesuffix(".py")
        unexpected = set(imported.findall(text)) - ROOMS[room] - {room}
        assert not unexpected, f"{path} imports {', '.join(sorted(unexpected))}"


def test_inventory_plugin_and_schema_have_the_same_options() -> None:
    program = Path(sys.executable).with_name("ansible-doc")
    shown = subprocess.run(
        [program, "--type", "inventory", "--json", "edgeml.fleet.placement"], check=True, capture_output=True, text=True
    ).stdout
    plugin = json.loads(shown)["edgeml.fleet.placement"]
    schema = json.loads((ROOT / "meta" / "schemas" / "placement.schema.json").read_text())
    options = plugin["doc"]["options"]
    assert set(schema["properties"]) == set(options)
    assert sorted(schema["required"]) == sorted(name for name, option in options.items() if option.get("required"))
    for name, option in options.items():
        assert schema["properties"][name].get("default") in (None, option.get("default")), name
    assert validate(yaml.safe_load(plugin["examples"]), "placement") == []


@pytest.mark.parametrize("path", sorted((ROOT / "meta" / "schemas").glob("*.json")), ids=lambda path: path.stem)
def test_schemas_are_valid_and_say_what_everything_means(path: Path) -> None:
    schema = json.loads(path.read_text())
    Draft202012Validator.check_schema(schema)

    def undescribed(part: Any, place: str) -> Iterator[str]:
        if isinstance(part, dict):
            for name, value in {**part.get("properties", {}), **part.get("$defs", {})}.items():
                if "description" not in value and "$ref" not in value:
                    yield f"{place}.{name}"
            for key, value in part.items():
                yield from undescribed(value, f"{place}.{key}")

    assert list(undescribed(schema, "")) == []


def test_collections_that_are_used_are_declared() -> None:
    # Only the role awx_setup uses awx.awx; who has no AWX need not install it, and docs/awx.md says so.
    declared = {"ansible.builtin", "edgeml.fleet", "awx.awx", *load(ROOT / "galaxy.yml")["dependencies"]}
    used = set()
    for path, text in texts("roles", "playbooks"):
        if path.suffix == ".yml":
            used |= {
                ".".join(name.split(".")[:2]) for name in re.findall(r"^\s+([a-z]+\.[a-z]+\.[a-z_]+):", text, re.M)
            }
    assert used <= declared


def test_collections_are_declared_from_the_version_that_is_tested() -> None:
    for name, versions in load(ROOT / "galaxy.yml")["dependencies"].items():
        manifest = COLLECTIONS.joinpath(*name.split("."), "MANIFEST.json")
        installed = json.loads(manifest.read_text())["collection_info"]["version"]
        assert versions == f">={installed}", f"{name} {installed} is installed and tested"


def test_libraries_that_plugins_import_are_declared() -> None:
    def names(requirements: Iterable[str]) -> set[str]:
        return {canonicalize_name(Requirement(line).name) for line in requirements if line and line[0] != "#"}

    declared = names((ROOT / "meta" / "ee-requirements.txt").read_text().splitlines())
    locked = (ROOT / "requirements" / "controller.txt").read_text()
    assert [name for name in declared if f"\n{name}==" not in f"\n{locked}"] == []
    imported = {
        name.partition(".")[0]
        for path in tracked("plugins")
        if path.suffix == ".py"
        for node in ast.walk(ast.parse(path.read_text()))
        for name in (
            [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else []
        )
    }
    providers = importlib.metadata.packages_distributions()
    ansible = {"ansible-core", *names(importlib.metadata.requires("ansible-core") or [])}
    for name in imported - sys.stdlib_module_names - {"", "ansible_collections"}:
        needed = {canonicalize_name(distribution) for distribution in providers[name]}
        assert needed & (declared | ansible), f"{name} is imported and not in meta/ee-requirements.txt"


def test_the_collection_needs_nothing_else_of_the_repository() -> None:
    outside = re.compile(r"(?<![\w./])(?<!edgeml\.fleet:)(runtime|tests|docs|inventories(?!/production))/")
    offenders = [
        f"{path}: {line.strip()}"
        for path, text in texts("plugins", "roles", "playbooks")
        for line in text.splitlines()
        if outside.search(line)
    ]
    assert offenders == []


def test_the_runtime_imports_nothing_of_the_collection() -> None:
    assert [str(path) for path, text in texts("runtime/src") if "ansible" in text] == []


def test_no_secret_is_shown_by_constant() -> None:
    pattern = re.compile(r"no_log: *(false|no)\b", re.I)
    assert [str(path) for path, text in texts("roles", "playbooks") if pattern.search(text)] == []


def test_no_path_or_host_of_a_development_machine() -> None:
    pattern = re.compile(
        r"/work/(main|shared)|/root/|\b(deb|security|files|registry)\.[a-z]+\.(org|com)\b|\bpypi\.[a-z]+\b"
    )
    this = Path(__file__).relative_to(ROOT)
    assert [str(path) for path, text in texts(".") if path != this and pattern.search(text)] == []


def test_files_name_their_licence() -> None:
    sources = [
        (path, text) for path, text in texts(*COLLECTION, "tests", "runtime/src") if path.suffix in (".py", ".yml")
    ]
    missing = [str(path) for path, text in sources if "SPDX-License-Identifier" not in text and "_pb2" not in path.name]
    assert [name for name in missing if not name.startswith("meta/")] == []


def test_the_collection_holds_only_the_collection(tmp_path: Path) -> None:
    galaxy = Path(sys.executable).with_name("ansible-galaxy")
    subprocess.run(
        [galaxy, "collection", "build", "--output-path", tmp_path], cwd=ROOT, check=True, capture_output=True
    )
    with tarfile.open(next(tmp_path.glob("edgeml-fleet-*.tar.gz"))) as archive:
        names = archive.getnames()
    folders = {name.split("/")[0] for name in names}
    needed = (
        "plugins",
        "meta",
        "playbooks",
        "models",
        "runtime/src",
        "runtime/image",
        "inventories/quickstart",
        "docs",
    )
    assert {str(path.relative_to(ROOT)) for path in tracked(*needed)} <= set(names)
    pages = {"README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"}
    # What publishing needs of the runtime and of the quickstart's models comes with the collection.
    content = {"runtime", "requirements", "models", "inventories", "docs"}
    assert folders <= {*COLLECTION, *content, *pages, "LICENSES", "MANIFEST.json", "FILES.json"}
    assert set(COLLECTION) <= folders
    assert [name for name in names if "__pycache__" in name or name.endswith((".lock.yml", ".sig"))] == []
    for name in names:
        if name.endswith(".md"):
            assert list(dead_links(ROOT / name, set(names))) == [], f"{name} of the archive has dead links"


#: How pages of the archive name a file of the repository that the archive does not have.
IN_REPOSITORY = re.compile(re.escape(load(ROOT / "galaxy.yml")["repository"]) + "/(tree|blob)/main/")
#: Targets of inline links and images; code between backticks is no link.
LINK = re.compile(r"\]\(([^)\s]+)\)")


def dead_links(page: Path, names: set[str] | None = None) -> Iterator[str]:
    """Links of a Markdown page to files that are not there, or not among `names`, and to headings that no page has."""
    text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(), flags=re.S)
    for link in LINK.findall(text):
        target, _, heading = link.partition("#")
        if IN_REPOSITORY.match(target):
            path = ROOT / IN_REPOSITORY.sub("", target)
        elif re.match(r"[a-z]+:", link):
            continue
        else:
            path = (page.parent / target).resolve() if target else page
            if names is not None and str(path.relative_to(ROOT)) not in names:
                yield link
        if not path.exists() or (heading and heading not in headings(path)):
            yield link


def headings(page: Path) -> set[str]:
    """The anchors that a page's headings get."""
    found = re.findall(r"^#+ +(.+)$", re.sub(r"```.*?```", "", page.read_text(), flags=re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", re.sub(r"[`*]", "", title)).strip().lower().replace(" ", "-") for title in found}


def test_links_between_pages_lead_somewhere() -> None:
    pages = [path for path in tracked(".") if path.suffix == ".md"]
    assert len(pages) > 30
    assert {str(page.relative_to(ROOT)): links for page in pages if (links := list(dead_links(page)))} == {}


def test_hooks_before_a_commit_run_what_lint_runs() -> None:
    hooks = load(ROOT / ".pre-commit-config.yaml")["repos"][0]["hooks"]
    lint = (ROOT / "Makefile").read_text().replace("$(BIN)", ".venv/bin")
    commands = {" ".join(hook["entry"].split()[:2]) for hook in hooks}
    assert [command for command in commands if command not in lint] == []


def test_a_controller_needs_what_something_imports_and_no_more() -> None:
    asked = re.findall(r"^[A-Za-z0-9_.-]+", (ROOT / "requirements" / "controller.in").read_text(), re.MULTILINE)
    imported = {
        name
        for _path, text in texts("plugins")
        for name in re.findall(r"^\s*(?:import|from) ([a-zA-Z0-9_]+)", text, re.MULTILINE)
    }
    # community.crypto, which the role private_ca uses, imports cryptography as well.
    assert set(asked) - {"ansible"} <= imported


def test_nothing_slow_comes_with_what_reads_each_inventory() -> None:
    """jsonschema imports each library of its extra `format` that it finds: 1.4 s more for every ansible-playbook."""
    slow = ("rfc3987_syntax", "lark")
    assert [name for name in slow if importlib.util.find_spec(name)] == []


def test_the_two_hosts_of_the_readme_say_what_a_new_user_needs() -> None:
    chapter = (ROOT / "README.md").read_text().partition("## Your own two hosts")[2].partition("\n## ")[0]
    block = re.search(r"```yaml\n(all:.*?)```", chapter, re.DOTALL)
    assert block
    inventory = yaml.safe_load(block[1])["all"]
    assert set(inventory["children"]) == {"controllers", "stores", "mirrors", "devices"}
    known = load(ROOT / "roles/defaults/meta/argument_specs.yml")["argument_specs"]["variables"]["options"]
    assert set(inventory["vars"]) - {"ansible_user"} <= set(known)
    for words in ("ansible_user", "Permission denied", "on the board", "inference_runtime_listen_address"):
        assert words in chapter
