# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the verification of all devices found: health, answers, digests, latency, drift. On the controller only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ansible_collections.edgeml.fleet.plugins.plugin_utils.reports.runtimes import as_mapping
from ansible_collections.edgeml.fleet.plugins.plugin_utils.reports.text import aligned, listed, site_of, unframed

#: Where the playbook keeps what it learned of a device.
COMPARISON = "edgeml_devices_comparison"
EXPECTED = "edgeml_verify_expected"
EXPECTATION = "edgeml_verify_expectation"
RELEASES = "edgeml_verify_releases"
HEALTH = "inference_runtime_health"
LATENCY = "inference_runtime_latency"

CHECKS = ("reachable", "health", "answers", "digests", "latency", "drift")
PERCENTILES = ("p50_ms", "p95_ms", "p99_ms")
_UNREACHED = "it cannot be reached"
#: What host_state says where the inventory, not the host, has changed: `digests` tells what that means.
_OTHER_DOCUMENT = "the inventory, the lock or the collection says something else"
_NEVER = "no converge has been recorded on this host"
_NAMED = 6


def collect(hostvars: Mapping[str, Mapping[str, Any]], hosts: Sequence[str]) -> dict[str, Any]:
    """Return {"passed", "totals", "hosts"}: for each host what passed, what did not and why, and what was measured."""
    found = [_host(name, hostvars[name]) for name in hosts]
    return {
        "passed": all(host["passed"] for host in found),
        "totals": {
            "passed": sum(host["passed"] for host in found),
            "failed": sum(not host["passed"] for host in found),
        },
        "hosts": found,
    }


def _host(name: str, variables: Mapping[str, Any]) -> dict[str, Any]:
    comparison, releases = as_mapping(variables.get(COMPARISON)), as_mapping(variables.get(RELEASES))
    host: dict[str, Any] = {"name": name, "site": site_of(variables), "models": [], "findings": [], "unasked": []}
    findings: list[dict[str, str]] = host["findings"]

    def find(check: str, text: object) -> None:
        finding = {"check": check, "text": unframed(text)}
        if finding not in findings:
            findings.append(finding)

    lines = {section: list(map(str, texts)) for section, texts in as_mapping(comparison.get("reasons")).items()}
    of_host = lines.pop("host", [])
    unreached = [text for text in of_host if text.startswith(_UNREACHED)]
    if unreached or releases.get("unreachable"):
        find("reachable", unreached[0] if unreached else f"{_UNREACHED}: {unframed(releases.get('msg'))}")
        return {**host, "passed": False}
    if of_host:  # it was asked nothing else
        find("drift", of_host[0])
        return {**host, "unasked": [check for check in CHECKS if check not in ("reachable", "drift")], "passed": False}
    host["unasked"] = list(_unasked(variables))
    expectation = as_mapping(variables.get(EXPECTATION))
    if expectation.get("failed"):
        find("digests", f"the inventory does not say what runs here: {unframed(expectation.get('msg'))}")
    if releases.get("failed"):
        find("health", f"it cannot tell what runs: {unframed(releases.get('msg'))}")
    for check, text in _of_health(variables.get(HEALTH)):
        find(check, text)
    for text in _of_latency(variables.get(LATENCY)):
        find("latency", text)
    runtimes = releases.get("runtimes") or []
    for text in _other_digests(runtimes, as_mapping(variables.get(EXPECTED)).get("runtimes") or ()):
        find("digests", text)
    lines.pop("run", None)
    for texts in lines.values():
        for text in texts:
            if text not in (_OTHER_DOCUMENT, _NEVER):
                find("drift", text)
    for runtime in runtimes:
        for text in runtime.get("drift") or ():
            find("drift", f"{runtime['name']}: {text}")
    host["models"] = _models(variables.get(HEALTH), variables.get(LATENCY))
    return {**host, "passed": not findings}


def _unasked(variables: Mapping[str, Any]) -> Iterable[str]:
    """Yield the checks that were not made, as in check mode, or on a host that is to serve nothing."""
    if not _answers(variables.get(HEALTH)):
        yield from ("health", "answers")
    if not _answers(variables.get(LATENCY)):
        yield "latency"


def _of_health(result: Any) -> Iterable[tuple[str, str]]:
    """Yield what the health check found, as (check, text): wrong answers apart from all else."""
    for answer in _answers(result):
        if answer.get("unreachable"):
            yield "reachable", f"{_UNREACHED}: {unframed(answer.get('msg'))}"
            continue
        models = answer.get("models") or []
        wrong = [case for model in models for case in model.get("golden") or () if not case.get("passed")]
        if wrong:
            names = listed([str(case["case"]) for case in wrong], _NAMED)
            yield "answers", f"{len(wrong)} golden cases are answered otherwise than expected: {names}"
        elif answer.get("failed"):
            yield "health", str(answer.get("msg"))


def _of_latency(result: Any) -> Iterable[str]:
    for answer in _answers(result):
        if answer.get("failed") and not answer.get("unreachable"):
            yield from map(str, answer.get("failures") or [answer.get("msg")])


def _other_digests(runtimes: Sequence[Mapping[str, Any]], expected: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    """Yield what is served otherwise than the inventory and the lock say."""
    served = {(str(one["name"]), model["name"]): model for one in runtimes for model in _models_of(one)}
    meant = {(str(one["name"]), model["name"]): model for one in expected for model in one["models"]}
    for key, model in meant.items():
        other = served.get(key)
        if other is None:
            yield f"{model['name']} {_version(model)} is not served"
        elif str(other.get("digest")) != str(model["digest"]):
            yield f"{model['name']} {_version(other)} is served, the inventory says {_version(model)}"
    for key, model in served.items():
        if key not in meant:
            yield f"{model['name']} {_version(model)} is served, the inventory does not have it here"


def _models_of(runtime: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    models: Sequence[Mapping[str, Any]] = as_mapping(runtime.get("active")).get("models") or ()
    return models


def _version(model: Mapping[str, Any]) -> str:
    variant = model.get("variant") or "default"
    digest = str(model.get("digest", "")).rpartition(":")[2][:12]
    return " ".join([str(model.get("version")), *([str(variant)] if variant != "default" else []), f"({digest})"])


def _models(health: Any, latency: Any) -> list[dict[str, Any]]:
    """Return for each model and protocol its golden cases and percentiles."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for answer in _answers(health):
        for model in answer.get("models") or ():
            row = rows.setdefault((model["name"], _protocol(answer)), {})
            golden = model.get("golden") or []
            row |= {
                "version": model.get("version"),
                "cases": len(golden),
                "passed": sum(bool(case.get("passed")) for case in golden),
                **({"provider": model["provider"]} if model.get("provider") else {}),
            }
    for answer in _answers(latency):
        for model in answer.get("models") or ():
            row = rows.setdefault((model["name"], _protocol(answer)), {})
            row |= {key: model[key] for key in (*PERCENTILES, "samples", "objective", "met") if key in model}
    return [{"name": name, "protocol": protocol, **row} for (name, protocol), row in rows.items()]


def _protocol(answer: Mapping[str, Any]) -> str:
    endpoint = str(as_mapping(answer.get("item")).get("endpoint", ""))
    return "rest" if endpoint.startswith("http") else "grpc"


def _answers(result: Any) -> list[Mapping[str, Any]]:
    """Return the answer of a module, or of each turn of a loop."""
    answer = as_mapping(result)
    turns = answer.get("results")
    found = turns if isinstance(turns, list) else [answer] if answer else []
    return [as_mapping(turn) for turn in found if not as_mapping(turn).get("skipped")]


def table(report: Mapping[str, Any]) -> str:
    """Return a line for each host: a word for each check; below, what did not pass."""
    rows: list[tuple[object, ...]] = [("host", *CHECKS, "p95")]
    for host in report["hosts"]:
        missed = {finding["check"] for finding in host["findings"]}
        unasked = {*CHECKS} if "reachable" in missed else {*host["unasked"]}
        words = ["no" if check in missed else "-" if check in unasked else "ok" for check in CHECKS]
        rows.append((host["name"], *words, _slowest(host["models"])))
    lines = [
        f"Verified {len(report['hosts'])} devices: {report['totals']['passed']} passed, "
        f"{report['totals']['failed']} did not",
        *("  " + text for text in aligned(rows)),
    ]
    unchecked: dict[str, list[str]] = {}
    for host in report["hosts"]:
        for model in host["models"]:
            if model.get("cases") == 0 and host["name"] not in unchecked.setdefault(model["name"], []):
                unchecked[model["name"]].append(host["name"])
    lines += [
        f"  note: {listed(hosts, _NAMED)}: nothing checks the answers of {name}: it has no golden cases"
        for name, hosts in sorted(unchecked.items())
    ]
    lines += _what_computes(report["hosts"])
    by_text: dict[tuple[str, str], list[str]] = {}
    for host in report["hosts"]:
        for finding in host["findings"]:
            by_text.setdefault((finding["check"], " ".join(finding["text"].split())), []).append(host["name"])
    lines += [f"  {check}: {listed(hosts, _NAMED)}: {text}" for (check, text), hosts in by_text.items()]
    return "\n".join(lines)


def _what_computes(hosts: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what computes the models that the processor does not compute everywhere."""
    computed: dict[str, dict[str, list[str]]] = {}
    for host in hosts:
        for name, provider in sorted({(model["name"], model.get("provider", "")) for model in host["models"]}):
            if provider:
                computed.setdefault(name, {}).setdefault(provider, []).append(host["name"])
    return [
        f"  note: {listed(names, _NAMED)}: {provider} computes {model}"
        for model, providers in sorted(computed.items())
        if set(providers) != {"CPU"}
        for provider, names in providers.items()
    ]


def _slowest(models: Sequence[Mapping[str, Any]]) -> str:
    """Return the slowest model's 95th percentile."""
    measured = [model for model in models if "p95_ms" in model]
    if not measured:
        return "-"
    slowest = max(measured, key=lambda model: float(model["p95_ms"]))
    return f"{float(slowest['p95_ms']):.3g} ms ({slowest['name']} over {slowest['protocol']})"


def why(host: Mapping[str, Any]) -> str:
    """Return why a host did not pass, in one line."""
    return "; ".join(" ".join(finding["text"].split()).rstrip(".") for finding in host["findings"])
