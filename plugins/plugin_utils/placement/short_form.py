# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the inventory says of placed models: each model once for the fleet, and on a host no more than what differs.

Ten thousand hosts with fifty models each are half a million items. In full they are 770 MiB of JSON.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

#: The key of a short item that names the model which it differs from.
MODEL = "model"


def shorten(
    hosts: Mapping[str, Sequence[dict[str, Any]]],
) -> tuple[dict[str, dict[str, Any]], dict[str, list[str | dict[str, Any]]]]:
    """Return the models of all hosts by label, and the short items of each host.

    `hosts` holds each host's resolved models; what is one object is compared and shortened once. A label is
    ``NAME VERSION VARIANT``, without the variant while it is undecided. The settings under a label are those that most
    hosts have. A short item is a label, or ``{"model": LABEL}`` and those keys that have another value on this host.
    """
    uses = Counter(id(item) for items in hosts.values() for item in items)
    by_id = {id(item): item for items in hosts.values() for item in items}
    models: dict[str, dict[str, Any]] = {}
    for number, _count in uses.most_common():
        models.setdefault(_label(by_id[number]), by_id[number])
    short = {number: _short(item, models) for number, item in by_id.items()}
    lists: dict[tuple[int, ...], list[str | dict[str, Any]]] = {}
    result = {}
    for name, items in hosts.items():
        key = tuple(map(id, items))
        if key not in lists:
            lists[key] = [short[number] for number in key]
        result[name] = lists[key]
    return models, result


def expand(items: Sequence[str | Mapping[str, Any]], models: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return a host's resolved models from its short items and the `models` by label, see shorten.

    Raises KeyError for a label that is not in `models`.
    """
    expanded = []
    for item in items:
        if isinstance(item, str):
            expanded.append(dict(models[item]))
        else:
            own = {key: value for key, value in item.items() if key != MODEL}
            expanded.append({**models[item[MODEL]], **own})
    return expanded


def _label(item: Mapping[str, Any]) -> str:
    return " ".join(str(item[key]) for key in ("name", "version", "variant") if key in item)


def _short(item: dict[str, Any], models: Mapping[str, dict[str, Any]]) -> str | dict[str, Any]:
    label = _label(item)
    model = models[label]
    own = {key: value for key, value in item.items() if model.get(key) != value}
    return {MODEL: label, **own} if own else label
