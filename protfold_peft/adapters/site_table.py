"""The sites of an adapter as they are stored in its configuration: a few lines for each group, for people to read.

    "attention": {
      "layers": "0-35",
      "kinds": [
        {"kind": "query", "path": "esm.encoder.layer.*.attention.self.query", "d_out": 2560, "d_in": 2560,
         "heads": "output 40 x 64"},
        ...
      ],
      ...
    }

`layers` are the rows of the group's tensor, in order, and `kinds` its columns; the `*` of a path stands for the layer.
A kind that is not in all of the group's layers names its own. Fields at their usual values are left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from protfold_peft.adapters.sites import HeadSplit, RowBlocks, Site
from protfold_peft.errors import CheckpointError

# Raised when the form or the meaning of a stored layout changes.
VERSION = 3


def pack(sites: Iterable[Site]) -> dict[str, dict[str, Any]]:
    """The table of sites by group, in plain JSON types."""
    groups: dict[str, list[Site]] = {}
    for site in sites:
        groups.setdefault(site.group, []).append(site)
    return {name: _pack_group(members) for name, members in groups.items()}


def _pack_group(sites: Sequence[Site]) -> dict[str, Any]:
    """The sites of a group as plain JSON: its layers, and an entry for each kind."""
    layers = [layer for _, layer in sorted({(site.row, site.layer) for site in sites})]
    kinds: dict[Site, list[Site]] = {}
    for site in sites:
        # What is left of a site without its layer: equal for all that one line describes.
        kinds.setdefault(replace(site, path=_pattern(site), layer=0, row=0), []).append(site)
    alike = sorted(kinds.values(), key=lambda members: (members[0].column, min(site.row for site in members)))
    return {"layers": _ranges(layers), "kinds": [_pack_kind(members, layers) for members in alike]}


def _pack_kind(sites: Sequence[Site], layers: Sequence[int]) -> dict[str, Any]:
    """An entry of `_pack_group`; layers are named where they are not those of the group."""
    first = sites[0]
    entry: dict[str, Any] = {
        "kind": first.kind,
        "path": _pattern(first),
        "d_out": first.d_out,
        "d_in": first.d_in,
        "heads": None,
    }
    if first.heads is not None:
        spread = " interleaved" if first.heads.interleaved else ""
        entry["heads"] = f"{first.heads.axis} {first.heads.count} x {first.heads.width}{spread}"
    if first.rows is not None:
        entry["rows"] = asdict(first.rows)
    if first.transposed:
        entry["transposed"] = True
    if not first.batch_first:
        entry["batch_first"] = False
    own = [site.layer for site in sorted(sites, key=lambda site: site.row)]
    if own != list(layers):
        entry["layers"] = _ranges(own)
    return entry


def _pattern(site: Site) -> str:
    """The path with its first number, which is the layer, as a star; a path without one as it is."""
    return re.sub(rf"(^|\.){site.layer}(?=\.|$)", r"\1*", site.path, count=1)


def sites_of(layout: Any) -> tuple[Site, ...]:
    """The sites of a stored layout.

    Raises:
        CheckpointError: There is none, it is damaged, or it is of another version of protfold-peft.
    """
    if not isinstance(layout, Mapping) or not layout:
        raise CheckpointError("the adapter's configuration holds no layout of sites; save it again")
    if layout.get("version") != VERSION:
        raise CheckpointError(
            f"the adapter's layout has version {layout.get('version')}, this protfold-peft reads {VERSION}; "
            "load it with the one that saved it"
        )
    return unpack(layout.get("groups"))


def unpack(groups: Any) -> tuple[Site, ...]:
    """The inverse of `pack`, layer by layer.

    Raises:
        CheckpointError: The table is damaged.
    """
    if not isinstance(groups, Mapping) or not groups:
        raise CheckpointError("the adapter's configuration holds no layout of sites; save it again")
    sites: list[Site] = []
    for name, group in groups.items():
        try:
            sites += _unpack_group(name, group)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"group '{name}' of the adapter's layout is damaged ({error!r})") from error
    return tuple(sorted(sites, key=lambda site: (site.layer, site.group, site.column, site.path)))


def _unpack_group(name: str, group: Mapping[str, Any]) -> list[Site]:
    """The sites that `_pack_group` wrote.

    Raises:
        KeyError, TypeError, ValueError: The entry is damaged.
    """
    layers = _numbers(group["layers"])
    columns: dict[str, int] = {}
    sites = []
    for entry in group["kinds"]:
        if unknown := set(entry) - _FIELDS:
            raise ValueError(f"unknown field '{min(unknown)}'")
        column = columns.setdefault(entry["kind"], len(columns))
        rows, heads = entry.get("rows"), entry["heads"]
        for layer in _numbers(entry["layers"]) if "layers" in entry else layers:
            site = Site(
                path=entry["path"].replace("*", str(layer), 1),
                group=name,
                row=layers.index(layer),
                column=column,
                layer=layer,
                kind=entry["kind"],
                d_out=entry["d_out"],
                d_in=entry["d_in"],
                heads=None if heads is None else _heads(heads),
                rows=None if rows is None else RowBlocks(**rows),
                transposed=entry.get("transposed", False),
                batch_first=entry.get("batch_first", True),
            )
            site.check()
            sites.append(site)
    return sites


_FIELDS = {"kind", "path", "d_out", "d_in", "heads", "rows", "transposed", "batch_first", "layers"}


def _heads(text: str) -> HeadSplit:
    match = re.fullmatch(r"(output|input) (\d+) x (\d+)( interleaved)?", text)
    if match is None:
        raise ValueError(f"heads '{text}'")
    return HeadSplit("output" if match[1] == "output" else "input", int(match[2]), int(match[3]), bool(match[4]))


def _ranges(numbers: Sequence[int]) -> str:
    """`0-3,7` for 0, 1, 2, 3, 7."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _numbers(text: str) -> list[int]:
    """The inverse of `_ranges`."""
    numbers: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d{1,6})(?:-(\d{1,6}))?", part)
        if match is None:
            raise ValueError(f"layers '{text}'")
        numbers += range(int(match[1]), int(match[2] or match[1]) + 1)
    if len(set(numbers)) != len(numbers):
        raise ValueError(f"layers '{text}' name one twice")
    return numbers
