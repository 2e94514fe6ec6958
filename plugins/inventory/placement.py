# Copyright (c) edgeml.fleet contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Inventory source that puts models on the hosts of other sources."""

from __future__ import annotations

DOCUMENTATION = r"""
name: placement
short_description: Puts models on the hosts of other inventory sources
version_added: 0.1.0
author: edgeml.fleet contributors (@edgeml)
description:
  - Reads a catalogue of models and rules that say which of them run on which hosts, and gives each host the variable
    C(edgeml_models) with all of it resolved, variants included.
  - It makes no hosts. It goes after the sources that do, such as C(20-placement.yml) beside C(10-hosts.yml) in a
    directory, which Ansible reads in alphabetical order.
  - In the inventory itself each host carries C(edgeml_placed), the short form of that, and the group C(all) carries
    C(edgeml_placed_models), what the short forms refer to. C(edgeml_models) is the template that joins both.
  - Creates the groups C(model_<name>), C(variant_<model>_<variant>), C(arch_<architecture>) and C(site_<site>), with
    dashes as underscores. A group C(site_<site>) gets C(edgeml_site_models), the models of its hosts, each once.
    Group C(all) gets C(edgeml_catalogue) and C(edgeml_runtimes), with absolute paths.
  - What a variant asks for comes from the host's variables (C(edgeml_architecture), C(edgeml_memory_mb),
    C(edgeml_cpu_features), C(edgeml_accelerator), C(edgeml_site)), else from what the playbook
    C(edgeml.fleet.preflight) found out (C(edgeml_host)), else from Ansible's facts in the fact cache. If
    nothing is known yet, the item has no C(variant), and the role decides when the host is known.
  - A model whose C(variant) is C(best) gets that of its variants without C(when) which the playbook
    C(edgeml.fleet.measure) found to be the best on hosts of the host's kind (O(measurements_file)).
  - The host or group variable C(edgeml_model_overrides) goes before the rule, and the rule before the catalogue. What
    is a template there is left to the role.
  - With O(cache) the result is kept, and used while the file, the lock, and what it depends on of the hosts stay the
    same, so that it is never out of date. Nothing is kept if anything is vaulted.
  - Everything that is wrong is reported at once. No host gets anything then.
  - Nothing in the file and nothing that a host's variables or facts say is ever taken for a template.
notes:
  - Ansible only warns about a source that fails. Set C(any_unparsed_is_failed = true) in the section C([inventory]) of
    ansible.cfg to stop there.
  - The schema of the file is C(meta/schemas/placement.schema.json) of the collection, for editors too.
extends_documentation_fragment:
  - ansible.builtin.constructed
  - ansible.builtin.inventory_cache
options:
  plugin:
    description: Marks the file as one for this plugin.
    type: str
    required: true
    choices: [edgeml.fleet.placement]
  runtimes:
    description:
      - The inference servers there are. Without it names of runtimes are not checked here.
      - Each has a C(name) and one of C(recipe), C(image) and C(extends).
    type: list
    elements: dict
  catalogue:
    description:
      - The models there are, with C(name), C(version), C(platform) and C(source), and what they need.
      - Several versions of a model may stand side by side.
    type: list
    elements: dict
    required: true
  placement:
    description:
      - Rules. Each puts its C(models) on the C(hosts) of a pattern, and may say what is different there, C(version),
        C(variant), C(runtime), C(requires), C(protocols), C(options), C(slo) or C(shadow).
      - A model may reach a host by one rule only.
    type: list
    elements: dict
    required: true
  lock_file:
    description:
      - The lock, relative to this file, from which items get their C(digest).
      - The name of the inventory's directory with C(.lock.yml) if omitted. It need not exist.
    type: str
  measurements_file:
    description:
      - The table of what was measured of variants, relative to this file.
      - The name of the inventory's directory with C(.measurements.jsonl) if omitted. It need not exist.
    type: str
  use_vars_plugins:
    description: Read C(group_vars) and C(host_vars) beside the inventory sources, as Ansible does later.
    type: bool
    default: true
"""

EXAMPLES = r"""
# yaml-language-server: $schema=../../meta/schemas/placement.schema.json
plugin: edgeml.fleet.placement
runtimes:
  - name: runtime
    recipe: edgeml.fleet:runtime/image/image.yml # the collection's own
    source_root: "edgeml.fleet:"
catalogue:
  - name: surface_defects
    version: 1.4.0
    platform: onnxruntime_onnx
    source: models/surface_defects
    variants: # the first that fits a host is taken
      - {name: int8, file: model.int8.onnx, when: {architecture: arm64}}
      - {name: fp32, file: model.onnx}
    requires: {memory_mb: 300, packages: [libgomp1]}
    slo: {p95_ms: 25, protocol: grpc}
placement:
  - {models: [surface_defects], hosts: "site_berlin:&cameras"}
  - {models: [surface_defects], hosts: site_oslo, slo: {p95_ms: 40}}
# groups by any expression, as with ansible.builtin.constructed
groups:
  fast: edgeml_models | selectattr('slo.p95_ms', 'defined') | selectattr('slo.p95_ms', '<', 30) | length > 0
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from ansible import template
from ansible.errors import AnsibleError, AnsibleParserError
from ansible.inventory.data import InventoryData
from ansible.parsing.dataloader import DataLoader
from ansible.plugins import AnsiblePlugin
from ansible.plugins.inventory import BaseInventoryPlugin, Cacheable, Constructable
from ansible_collections.edgeml.fleet.plugins.plugin_utils.documents.paths import absolute
from ansible_collections.edgeml.fleet.plugins.plugin_utils.documents.problem import (
    InventoryError,
    Problem,
    endless,
    read_positions,
    report,
)
from ansible_collections.edgeml.fleet.plugins.plugin_utils.documents.schema import native, validate
from ansible_collections.edgeml.fleet.plugins.plugin_utils.placement.catalogue import group_name
from ansible_collections.edgeml.fleet.plugins.plugin_utils.placement.host_variables import HostVariables
from ansible_collections.edgeml.fleet.plugins.plugin_utils.placement.measured import current, read_table
from ansible_collections.edgeml.fleet.plugins.plugin_utils.placement.placer import Placed, Placer
from ansible_collections.edgeml.fleet.plugins.plugin_utils.placement.short_form import shorten
from ansible_collections.edgeml.fleet.plugins.plugin_utils.publication.lock import published_lock

#: A host's models in full, made when somebody reads them. The template holds nothing from outside.
_MODELS = template.trust_as_template("{{ edgeml_placed | edgeml.fleet.placed_models(edgeml_placed_models) }}")

_SITE_PREFIX = group_name("site", "")


class InventoryModule(BaseInventoryPlugin, Constructable, Cacheable):
    """The plugin edgeml.fleet.placement."""

    NAME = "edgeml.fleet.placement"

    def verify_file(self, path: str) -> bool:
        """Return whether the file says that it is for this plugin."""
        if not BaseInventoryPlugin.verify_file(self, path) or not path.endswith((".yml", ".yaml")):
            return False
        try:
            root = yaml.compose(Path(path).read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
        except (OSError, UnicodeError, yaml.YAMLError):
            return False
        return isinstance(root, yaml.MappingNode) and any(
            key.value == "plugin" and value.value == self.NAME for key, value in root.value
        )

    def parse(self, inventory: InventoryData, loader: DataLoader, path: str, cache: bool = True) -> None:
        """Place the models of the file at `path` on the inventory's hosts; raise AnsibleParserError if it is wrong."""
        super().parse(inventory, loader, path, cache=cache)
        try:
            document = native(loader.load_from_file(path, cache="none"))
        except RecursionError:
            raise AnsibleParserError(str(endless((), path))) from None
        problems = validate(document, "placement")
        file = Path(path)
        try:
            BaseInventoryPlugin._read_config_data(self, path)
        except AnsibleError:
            if problems:
                raise AnsibleParserError(_message(problems, file)) from None
            raise
        # Groups get their parents and `all` its children only now, which patterns need; Ansible does so again later.
        source = inventory.current_source
        inventory.reconcile_inventory()
        inventory.current_source = source

        sources = [*inventory.processed_sources, path] if self._option("use_vars_plugins") else []
        directories = list(dict.fromkeys(str(Path(item).parent) for item in sources if Path(item).exists()))
        lock = self._lock(file)
        measurements = self._measurements(file, lock)
        placer = Placer(document, problems, _digests(lock), measurements)
        kept: dict[str, Any] | None = None
        if self._option("cache"):
            key = self.get_cache_key(path)
            kept = dict(self._cache.get(key, {})) if cache else {}
        placed = placer.place(inventory, loader, directories, kept)
        if kept:
            self._cache[key] = kept
        if placer.problems:
            raise AnsibleParserError(_message(placer.problems, file))
        _apply(inventory, document, file.parent, placed)
        if placer.catalogue.asks_kind:
            inventory.set_variable("all", "edgeml_measurements", measurements)
        self._construct(inventory, loader, directories, placed)

    def _option(self, name: str) -> Any:
        return AnsiblePlugin.get_option(self, name)

    def _measurements(self, path: Path, lock: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return what was measured of the variants in the lock."""
        name = self._option("measurements_file") or f"../{path.parent.name}.measurements.jsonl"
        try:
            return current(read_table(path.parent / name), lock)
        except InventoryError as error:
            raise AnsibleParserError(str(error)) from error

    def _lock(self, path: Path) -> Mapping[str, Any]:
        """Return the lock, without models if there is none or it is to be renewed."""
        lock_file = path.parent / (self._option("lock_file") or f"../{path.parent.name}.lock.yml")
        if not lock_file.exists():
            return {"models": {}}
        try:
            # Workers, which are forked from here, need not parse it again.
            lock: Mapping[str, Any] = published_lock(str(lock_file))
        except InventoryError as error:
            raise AnsibleParserError(str(error)) from error
        problems = validate(lock, "lock")
        if problems:
            self.display.warning(
                "The lock gives no digests until it is published again. " + _message(problems, lock_file)
            )
            return {"models": {}}
        return lock

    def _construct(
        self, inventory: InventoryData, loader: DataLoader, directories: Sequence[str], placed: Mapping[str, Placed]
    ) -> None:
        """Do what the options compose, groups and keyed_groups say, as ansible.builtin.constructed does."""
        apply: Any
        for option, apply in (
            ("compose", self._set_composite_vars),
            ("groups", self._add_host_to_composed_groups),
            ("keyed_groups", self._add_host_to_keyed_groups),
        ):
            expressions = self._option(option)
            if not expressions:
                continue
            reader = HostVariables(loader, directories, None)  # anew: it may need what the option before has made
            more = {} if option == "compose" else {"fetch_hostvars": False}
            for name, host in inventory.hosts.items():
                variables = {**reader.facts(name), **reader.of(host), **host.get_magic_vars()}
                if name in placed and placed[name].models is not None:
                    variables["edgeml_models"] = placed[name].models
                apply(expressions, variables, name, strict=self._option("strict"), **more)


def _digests(lock: Mapping[str, Any]) -> dict[tuple[str, str, str], str]:
    """Return the digests in the lock by name, version and variant."""
    return {
        (name, version, variant): entry["digest"]
        for name, versions in lock["models"].items()
        for version, model in versions.items()
        for variant, entry in model["variants"].items()
    }


def _apply(
    inventory: InventoryData, document: Mapping[str, Any], directory: Path, placed: Mapping[str, Placed]
) -> None:
    """Give hosts their models and groups, and the group all the catalogue."""
    # A job may find its hosts in a generated file elsewhere; lock and secrets are still those of this directory.
    inventory.set_variable("all", "edgeml_inventory_directory", str(directory.absolute()))
    inventory.set_variable("all", "edgeml_models", [])
    inventory.set_variable("all", "edgeml_catalogue", [_absolute_model(m, directory) for m in document["catalogue"]])
    if "runtimes" in document:
        runtimes = [_absolute(r, directory, "recipe", "source_root", "requirements") for r in document["runtimes"]]
        inventory.set_variable("all", "edgeml_runtimes", runtimes)
    models, short = shorten({name: result.models for name, result in placed.items() if result.models is not None})
    inventory.set_variable("all", "edgeml_placed_models", models)
    with_variants = {(m["name"], m["version"]) for m in document["catalogue"] if m.get("variants")}
    groups: dict[str, list[str]] = {}
    for name, result in placed.items():
        if result.models is not None:
            # Set at the host itself: through the inventory, each host would get a copy of what many share.
            inventory.hosts[name].set_variable("edgeml_placed", short[name])
            inventory.hosts[name].set_variable("edgeml_models", _MODELS)
        joined = list(result.groups)
        for item in result.models or ():
            joined.append(group_name("model", item["name"]))
            if "variant" in item and (item["name"], item["version"]) in with_variants:
                joined.append(group_name("variant", item["name"], item["variant"]))
        for group in joined:
            groups.setdefault(group, []).append(name)
    for group, names in groups.items():
        inventory.add_group(group)
        for name in names:
            inventory.add_child(group, name)
        if group.startswith(_SITE_PREFIX):
            # A job slice has some of a site's hosts only; its mirror is to hold what all of them need.
            inventory.set_variable(group, "edgeml_site_models", _of_site(names, placed))


def _of_site(hosts: Sequence[str], placed: Mapping[str, Placed]) -> list[dict[str, Any]]:
    """Return the models of a site's hosts, each once, with what decides on the content that they need."""
    known: dict[tuple[Any, ...], dict[str, Any]] = {}
    items = {id(item): item for name in hosts for item in placed[name].models or ()}
    for item in items.values():
        needed: dict[str, Any] = {key: item[key] for key in ("name", "version", "variant", "runtime") if key in item}
        known.setdefault(tuple(needed.items()), needed)
    return [known[key] for key in sorted(known)]


def _message(problems: Sequence[Problem], path: Path) -> str:
    """Return all problems, those of the file at `path` with their lines, in the file's order.

    A variable whose file is not known, since Ansible tells none of true, false and null, has no file then.
    """
    positions = read_positions(path.read_text(encoding="utf-8"), str(path))
    located = [
        problem if problem.file or problem.path[:1] not in ((), *positions.places) else problem.located(positions)
        for problem in problems
    ]
    return report(sorted(located, key=lambda problem: (problem.file != str(path), problem.file, problem.line or 0)))


def _absolute(entry: Mapping[str, Any], directory: Path, *keys: str) -> dict[str, Any]:
    """Return `entry` with the paths under `keys`, which are relative to `directory`, made absolute."""
    paths = {key: absolute(directory, entry[key]) for key in keys if key in entry}
    return {**entry, **paths}


def _absolute_model(model: Mapping[str, Any], directory: Path) -> dict[str, Any]:
    model = _absolute(model, directory, "golden")
    source = model["source"]
    model |= (
        _absolute(model, directory, "source")
        if isinstance(source, str)
        else {"source": _absolute(source, directory, "lock")}
    )
    if "build" in model:
        model["build"] = _absolute(model["build"], directory, "requirements")
    return model
