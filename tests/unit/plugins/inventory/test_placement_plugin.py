# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The inventory plugin: what it gives to hosts, and what it refuses."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import ansible_runner
import pytest
import yaml
from ansible.inventory.manager import InventoryManager
from ansible_collections.edgeml.fleet.plugins.plugin_utils.placement.short_form import expand

from .conftest import Inventory

SHA = "sha256:" + "a" * 64


def models(manager: InventoryManager, host: str) -> dict[str, dict[str, Any]]:
    placed = manager.hosts[host].vars.get("edgeml_placed", [])
    return {item["name"]: item for item in expand(placed, manager.groups["all"].vars["edgeml_placed_models"])}


def test_models_and_groups_of_each_host(inventory: Inventory) -> None:
    listed = inventory.listed()
    hosts = listed["_meta"]["hostvars"]
    assert hosts["camera"]["edgeml_models"] == [
        {"name": "digits", "version": "1.0.0", "variant": "int8", "runtime": "runtime", "requires": {},
         "protocols": ["rest", "grpc"], "options": {}, "slo": {"p95_ms": 25}, "shadow": {}},
        {"name": "sound-events", "version": "2.0.0", "variant": "default", "runtime": "runtime", "requires": {},
         "protocols": ["rest", "grpc"], "options": {}, "slo": {"p95_ms": 40}, "shadow": {}},
    ]  # fmt: skip
    assert [model["name"] for model in hosts["board"]["edgeml_models"]] == ["digits"]
    assert "variant" not in hosts["server"]["edgeml_models"][0], "nobody knows its architecture"
    assert hosts["mirror"]["edgeml_models"] == []
    groups = {name: sorted(group.get("hosts", [])) for name, group in listed.items() if "_" in name[1:]}
    assert groups == {
        "site_berlin": ["board", "camera"],
        "site_oslo": ["server"],
        "arch_amd64": ["mirror"],
        "arch_arm64": ["board", "camera"],
        "model_digits": ["board", "camera", "server"],
        "model_sound_events": ["camera"],
        "variant_digits_int8": ["board", "camera"],
    }


def test_graph_and_export(inventory: Inventory) -> None:
    graph = inventory.run("--graph", "model_sound_events")
    assert graph.stdout == "@model_sound_events:\n  |--camera\n"
    exported = inventory.listed("--export")
    assert [model["name"] for model in exported["all"]["vars"]["edgeml_catalogue"]] == ["digits", "sound-events"]
    assert "edgeml_catalogue" not in exported["_meta"]["hostvars"]["camera"]


def test_a_site_says_what_its_hosts_have_together(inventory: Inventory) -> None:
    """For a job slice, which does not see the site's other hosts."""
    inventory.write("group_vars/site_berlin.yml", "edgeml_site: berlin\n")
    assert inventory.listed("--export")["site_berlin"]["vars"]["edgeml_site_models"] == [
        {"name": "digits", "version": "1.0.0", "variant": "int8", "runtime": "runtime"},
        {"name": "sound-events", "version": "2.0.0", "variant": "default", "runtime": "runtime"},
    ]


def test_export_says_each_model_once(inventory: Inventory) -> None:
    inventory.write("host_vars/camera.yml", "edgeml_model_overrides: {digits: {slo: {p95_ms: 7}}}\n")
    done = inventory.run("--list", "--export")
    assert done.stdout.count('"protocols"') == 3, "digits with a variant, digits of an unknown host, sound-events"
    exported = inventory.listed("--export")
    hosts, variables = exported["_meta"]["hostvars"], exported["all"]["vars"]
    assert hosts["board"]["edgeml_placed"] == ["digits 1.0.0 int8"]
    assert hosts["server"]["edgeml_placed"] == ["digits 1.0.0"]
    assert hosts["camera"]["edgeml_placed"] == [
        {"model": "digits 1.0.0 int8", "slo": {"p95_ms": 7}}, "sound-events 2.0.0 default",
    ]  # fmt: skip
    assert variables["edgeml_models"] == [] and "edgeml_placed" not in hosts["mirror"]
    assert set(variables["edgeml_placed_models"]) == {
        "digits 1.0.0 int8", "sound-events 2.0.0 default", "digits 1.0.0",
    }  # fmt: skip


def test_a_play_sees_the_models_in_full(inventory: Inventory) -> None:
    inventory.write("host_vars/camera.yml", "edgeml_model_overrides: {digits: {slo: {p95_ms: 7}}}\n")
    inventory.write("../group_vars/all.yml", "edgeml_models: [{name: of-the-playbook}]\n")
    inventory.write(
        "../play.yml",
        "- hosts: all\n  gather_facts: false\n  tasks:\n"
        "    - ansible.builtin.copy:\n        content: '{{ edgeml_models | to_json }}'\n"
        "        dest: '{{ playbook_dir }}/{{ inventory_hostname }}.json'\n        mode: '0600'\n"
        "      delegate_to: localhost\n      vars: {ansible_connection: local}\n",
    )
    play = inventory.directory.parent / "play.yml"
    done = inventory.run(str(play), "--limit", "devices", program="ansible-playbook")
    assert done.returncode == 0, done.stdout + done.stderr
    listed = inventory.listed()["_meta"]["hostvars"]
    for host in ("board", "camera", "server"):
        assert json.loads((play.parent / f"{host}.json").read_text()) == listed[host]["edgeml_models"]
    assert listed["camera"]["edgeml_models"][0]["slo"] == {"p95_ms": 7}


def test_paths_are_absolute(inventory: Inventory) -> None:
    inventory.change(
        "source: models/sound",
        "source: {lock: ../other.lock.yml}\n    build: {program: b.py, requirements: r.txt}\n    golden: g",
    )
    variables = inventory.parse().groups["all"].vars
    root = inventory.directory.parent
    digits, sound = variables["edgeml_catalogue"]
    assert digits["source"] == f"{root}/models/digits"
    assert sound["source"] == {"lock": f"{root}/other.lock.yml"}
    assert sound["build"] == {"program": "b.py", "requirements": f"{root}/fleet/r.txt"}
    assert sound["golden"] == f"{root}/fleet/g"
    assert [runtime.get("recipe") for runtime in variables["edgeml_runtimes"]] == [f"{root}/image.yml", None]


def test_a_file_of_the_collection_stays_named(inventory: Inventory) -> None:
    """The job that reads it may run in another place than the inventory source did."""
    inventory.change("recipe: ../image.yml", "recipe: edgeml.fleet:runtime/image/image.yml")
    variables = inventory.host("board")
    assert variables["edgeml_runtimes"][0]["recipe"] == "edgeml.fleet:runtime/image/image.yml"


def test_group_and_host_variables_are_seen(inventory: Inventory) -> None:
    inventory.write("group_vars/site_oslo.yml", "edgeml_architecture: x86_64\nedgeml_site: oslo-2\n")
    inventory.write("group_vars/all/models.yml", "edgeml_model_overrides: {digits: {slo: {p95_ms: 100}}}\n")
    inventory.write("host_vars/camera.yml", "edgeml_model_overrides: {digits: {enabled: false}}\n")
    manager = inventory.parse()
    assert models(manager, "server")["digits"]["variant"] == "fp32"
    assert models(manager, "board")["digits"]["slo"] == {"p95_ms": 100}
    assert list(models(manager, "camera")) == ["sound-events"]
    assert [host.name for host in manager.groups["site_oslo_2"].hosts] == ["server"]
    inventory.change("placement:", "use_vars_plugins: false\nplacement:")
    assert "variant" not in models(inventory.parse(), "server")["digits"]


@pytest.mark.parametrize("files", [[], ["all", "devices"], ["devices"]])
def test_variables_have_the_precedence_that_plays_give_them(inventory: Inventory, files: list[str]) -> None:
    override = "edgeml_model_overrides: {{digits: {{slo: {{p95_ms: {}}}}}}}\n"
    hosts = inventory.directory / "10-hosts.yml"
    line = "    kinds: {children: {devices: {}}, vars: {" + override.format(1).strip() + "}}\n"
    hosts.write_text(hosts.read_text() + line)
    for number, name in enumerate(files):
        inventory.write(f"group_vars/{name}.yml", override.format(number + 2))
    host = inventory.host("board")
    expected = {"p95_ms": len(files) + 1}
    assert host["edgeml_models"][0]["slo"] == host["edgeml_model_overrides"]["digits"]["slo"] == expected


def test_digests_come_from_the_lock(inventory: Inventory) -> None:
    content = {"digest": SHA, "size": 1}
    variant = {"repository": "r", "digest": SHA, "index": SHA, "platforms": {}, "blob": content, "golden_cases": 0}
    lock: dict[str, Any] = {
        "serial": 1, "registry": "r:1", "images": {},
        "models": {"digits": {"1.0.0": {"platform": "p", "variants": {"int8": variant}}}},
    }  # fmt: skip
    inventory.write("../fleet.lock.yml", yaml.safe_dump(lock))
    manager = inventory.parse()
    assert models(manager, "board")["digits"]["digest"] == SHA
    assert "digest" not in models(manager, "camera")["sound-events"]
    lock["models"]["digits"]["1.0.0"]["variants"]["int8"]["digest"] = "sha256:a"
    inventory.write("../fleet.lock.yml", yaml.safe_dump(lock))
    done = inventory.run("--host", "board")
    assert done.returncode == 0 and '"digest"' not in done.stdout
    assert "fleet.lock.yml:" in done.stderr and "'sha256:a'" in done.stderr


def test_facts_come_from_the_fact_cache(inventory: Inventory) -> None:
    inventory.remember("server", {"ansible_architecture": "aarch64", "edgeml_host": {"accelerator": "npu"}})
    inventory.change("{architecture: arm64}", "{architecture: arm64, accelerator: npu}")
    assert inventory.host("server")["edgeml_models"][0]["variant"] == "int8"


def test_cache_is_used_only_while_nothing_has_changed(inventory: Inventory) -> None:
    directory = inventory.directory.parent / "cache"
    inventory.change(
        "placement:",
        f"cache: true\ncache_plugin: ansible.builtin.jsonfile\ncache_connection: {directory}\nplacement:",
    )
    first = inventory.listed()
    (file,) = directory.iterdir()
    assert inventory.listed() == first
    file.write_text(file.read_text().replace("int8", "made-up"))
    assert inventory.host("board")["edgeml_models"][0]["variant"] == "made-up", "it comes from the cache"
    inventory.write("host_vars/camera.yml", "edgeml_model_overrides: {digits: {slo: {p95_ms: 7}}}\n")
    assert inventory.host("camera")["edgeml_models"][0] | {"slo": {}} == {
        **first["_meta"]["hostvars"]["camera"]["edgeml_models"][0], "slo": {},
    }  # fmt: skip
    assert inventory.host("board")["edgeml_models"][0]["variant"] == "int8"


def test_secrets_do_not_go_into_the_cache(inventory: Inventory) -> None:
    directory = inventory.directory.parent / "cache"
    inventory.change(
        "placement:",
        f"cache: true\ncache_plugin: ansible.builtin.jsonfile\ncache_connection: {directory}\nplacement:",
    )
    vaulted = "!vault |\n        $ANSIBLE_VAULT;1.1;AES256\n        6162\n"
    inventory.change("slo: {p95_ms: 25}", f"requires:\n      environment:\n       KEY: {vaulted}")
    inventory.listed()
    assert not any("6162" in path.read_text() for path in directory.iterdir())


def test_constructed_options_see_what_is_placed(inventory: Inventory) -> None:
    inventory.change(
        "placement:",
        "compose: {model_names: edgeml_models | map(attribute='name') | join('+')}\n"
        "groups: {two_models: model_names == 'digits+sound-events'}\n"
        "keyed_groups: [{key: model_names, prefix: runs}]\nplacement:",
    )
    manager = inventory.parse()
    assert [host.name for host in manager.groups["two_models"].hosts] == ["camera"]
    assert sorted(host.name for host in manager.groups["runs_digits"].hosts) == ["board", "server"]
    inventory.change("groups: {two_models: model_names", "strict: true\ngroups: {two_models: model_nmes")
    with pytest.raises(Exception, match="two_models"):
        inventory.parse()


def test_nothing_is_ever_a_template(inventory: Inventory) -> None:
    trap = inventory.directory / "trapped"
    attack = f"{{{{ lookup('pipe', 'touch {trap}') }}}}"
    inventory.remember("server", {"ansible_architecture": attack, "edgeml_host": {"accelerator": attack}})
    inventory.change("slo: {p95_ms: 25}", f'options: {{parameters: {{text: "{attack}"}}}}')
    inventory.change("when: {architecture: arm64}", f'when: {{architecture: arm64, variables: {{line: "{attack}"}}}}')
    inventory.write("host_vars/board.yml", f'line: "{attack}"\nedgeml_accelerator: "{attack}"\n')
    inventory.write("host_vars/camera.yml", f'edgeml_model_overrides: {{digits: {{slo: {{p95_ms: "{attack}"}}}}}}\n')
    host = inventory.host("board")
    assert host["edgeml_models"][0]["options"]["parameters"]["text"] == attack
    play = inventory.write(
        "../play.yml",
        "- hosts: all\n  gather_facts: false\n  tasks:\n"
        "    - ansible.builtin.debug: {var: edgeml_models}\n"
        "    - ansible.builtin.debug: {msg: '{{ edgeml_catalogue }}'}\n",
    )
    # Only what the plugin makes is shown: a variable file of the user's own is trusted by Ansible.
    done = inventory.run(str(play), program="ansible-playbook")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "lookup('pipe'" in done.stdout.replace("''", "'")  # as YAML, quotes are doubled
    assert not trap.exists()


def test_vaulted_values_pass_through_unread(inventory: Inventory) -> None:
    vaulted = "!vault |\n        $ANSIBLE_VAULT;1.1;AES256\n        6162\n"
    inventory.change("slo: {p95_ms: 25}", f"requires:\n      environment:\n       KEY: {vaulted}")
    inventory.write("host_vars/server.yml", f"edgeml_architecture: {vaulted}")
    manager = inventory.parse()
    assert "variant" not in models(manager, "server")["digits"]
    exported = inventory.host("board")["edgeml_models"][0]["requires"]["environment"]["KEY"]
    assert exported == {"__ansible_vault": "$ANSIBLE_VAULT;1.1;AES256\n6162\n"}
    line = inventory.change("source: models/sound", f"source: {vaulted}")
    (problem,) = inventory.errors()
    assert "vaulted value cannot be used here" in problem and f"20-placement.yml:{line}" in problem
    assert "6162" not in problem


MISTAKES = {
    "unknown key": (
        "version: 1.0.0", "verson: 1.0.0",
        ["Unknown key", "catalogue[0].verson", "did you mean version"],
    ),
    "wrong type": ("slo: {p95_ms: 25}", "slo: {p95_ms: fast}", ["catalogue[0].slo.p95_ms", "'fast'", "give a number"]),
    "version is a number": ("version: 1.0.0", "version: 1.0", ["catalogue[0].version", "1.0 (number)", "in quotes"]),
    "unknown model": ("models: [digits]", "models: [digit]", ["placement[0]", "'digit'", "did you mean digits"]),
    "unknown group": ("hosts: devices", "hosts: device", ["placement[0].hosts", "did you mean devices"]),
    "unknown group to leave out": ("hosts: devices", 'hosts: "all:!mirror_"', ["called mirror_"]),
    "no host": ("hosts: devices", 'hosts: "devices:&mirrors"', ["matches no host", "'devices:&mirrors'"]),
    "no such index": ("hosts: devices", 'hosts: "devices[7]"', ["placement[0].hosts", "devices[7]"]),
    "placed twice": (
        "models: [sound-events]", "models: [digits]",
        ["digits is placed twice", "placement[1]", "also by placement[0]", "host camera"],
    ),
    "unknown version": ("hosts: devices", "hosts: devices, version: 1.1.0", ["'1.1.0'", "1.0.0"]),
    "unknown variant": ("hosts: devices", "hosts: devices, variant: int4", ["'int4'", "int8, fp32"]),
    "unknown runtime": ("hosts: devices", "hosts: devices, runtime: visoin", ["'visoin'", "did you mean vision"]),
    "half a source": ("source: models/sound", "source: {url: https://x}", ["sha256 is missing", "catalogue[1].source"]),
    "no source": ("source: models/sound", "source: {}", ["catalogue[1].source", "{url, sha256}, {oci} or {lock}"]),
    "template": ("source: models/sound", 'source: "{{ x }}"', ["'{{ x }}'", "Not a template"]),
    "runtime of nothing": ("{name: runtime, recipe: ../image.yml}", "{name: runtime}", ["recipe, image and extends"]),
    "whole part is wrong": ("placement:", "placement: 3\nx:", ["give a list", "placement", "3 (number)"]),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_each_mistake_is_named_with_file_and_line(inventory: Inventory, mistake: str) -> None:
    old, new, words = MISTAKES[mistake]
    line = inventory.change(old, new)
    (problem,) = [text for text in inventory.errors() if words[0] in text]
    assert [word for word in [f"20-placement.yml:{line},", *words] if word not in problem] == []


def test_same_model_and_version_twice(inventory: Inventory) -> None:
    inventory.change("name: sound-events\n    version: 2.0.0", "name: digits\n    version: 1.0.0")
    assert any("stands in the catalogue twice at 20-placement.yml:15" in text for text in inventory.errors())


def test_host_that_no_variant_fits(inventory: Inventory) -> None:
    inventory.change("      - {name: fp32, file: fp32.onnx}\n", "")
    inventory.write("host_vars/server.yml", "edgeml_architecture: amd64\n")
    (problem,) = inventory.errors()
    words = ["No variant of model digits 1.0.0 fits", "host server", "architecture 'amd64'", "int8 when"]
    assert [word for word in words if word not in problem] == []


def test_two_runtimes_on_one_port(inventory: Inventory) -> None:
    inventory.change("rest: 8010", "rest: 8000")
    inventory.parse()
    inventory.change("name: sound-events", "name: sound-events\n    runtime: vision")
    (problem,) = inventory.errors()
    words = ["port 8000", "runtime (rest) and vision (rest)", "host camera", "20-placement.yml:3"]
    assert [word for word in words if word not in problem] == []


def test_mistakes_in_host_variables_name_their_own_file(inventory: Inventory) -> None:
    inventory.write(
        "group_vars/site_berlin.yml", "edgeml_site: berlin\nedgeml_model_overrides:\n  digits:\n    slo: {p95: 3}\n"
    )
    inventory.write(
        "host_vars/server.yml", "edgeml_architecture: arm46\nedgeml_model_overrides: {sound-events: {enabled: false}}\n"
    )
    inventory.write("host_vars/mirror.yml", "edgeml_site: a b\nedgeml_model_overrides: {digit: {enabled: false}}\n")
    expected = [
        ["group_vars/site_berlin.yml:4, edgeml_model_overrides.digits.slo.p95", "host board, camera", "mean p95_ms"],
        ["host_vars/server.yml:1, edgeml_architecture, host server", "did you mean arm64"],
        ["host_vars/server.yml:2, edgeml_model_overrides.sound-events", "no rule places there"],
        ["host_vars/mirror.yml:1, edgeml_site", "'a b'"],
        ["host_vars/mirror.yml:2, edgeml_model_overrides.digit", "not in the catalogue", "did you mean digits"],
    ]
    problems = inventory.errors()
    assert [words for words in expected if not any(all(w in text for w in words) for text in problems)] == []
    assert len(problems) == len(expected)


@pytest.mark.parametrize("variable", ["edgeml_models", "edgeml_catalogue", "edgeml_runtimes"])
def test_variables_that_would_win_over_the_plugin(inventory: Inventory, variable: str) -> None:
    inventory.write("group_vars/devices.yml", f"{variable}: []\n")
    (problem,) = inventory.errors()
    assert f"{variable} would go before" in problem and "group_vars/devices.yml:1" in problem


def test_all_mistakes_at_once_and_nothing_placed(inventory: Inventory) -> None:
    inventory.change("version: 1.0.0", "version: 1.0")
    inventory.change("hosts: devices", "hosts: device")
    inventory.change("models: [sound-events]", "models: [sound-event]")
    inventory.change("recipe: ../image.yml", "recipe: ../image.yml, image_: x")
    problems = inventory.errors()
    assert [text.partition(",")[0].rpartition(":")[2] for text in problems] == ["4", "8", "20", "21"]
    done = inventory.run("--list")
    assert done.returncode != 0
    inventory.environment = {"ANSIBLE_INVENTORY_ANY_UNPARSED_IS_FAILED": "false"}
    listed = inventory.listed()
    assert not any("edgeml_models" in variables for variables in listed["_meta"]["hostvars"].values())
    assert not any(name.startswith(("model_", "arch_")) for name in listed)


def test_only_files_that_say_so_are_for_the_plugin(inventory: Inventory, tmp_path: Path) -> None:
    from ansible.plugins.loader import inventory_loader

    plugin = inventory_loader.get("edgeml.fleet.placement")
    assert plugin.verify_file(str(inventory.directory / "20-placement.yml"))
    assert not plugin.verify_file(str(inventory.directory / "10-hosts.yml"))
    assert not plugin.verify_file(str(inventory.write("broken.yml", "plugin: [")))
    assert not plugin.verify_file(str(tmp_path / "none.yml"))


def test_an_inventory_of_a_project_as_awx_reads_it(inventory: Inventory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    found, errors = ansible_runner.get_inventory(
        action="list", inventories=[str(inventory.directory)], export=True, response_format="json", quiet=True,
        private_data_dir=str(inventory.directory.parent / "runner"),
    )  # fmt: skip
    assert found["model_sound_events"]["hosts"] == ["camera"], errors
