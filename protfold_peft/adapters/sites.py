"""Which linear maps of a model are adapted, and where each one sits along the shared tensor.

Finding sites has two steps. `find_maps` lists every linear map that the model's architecture knows, with its layer,
kind and head split; `select` keeps those the user named. `assign` then sorts them into groups that share factors and
gives each its row along the layer axis and its column along the kind axis. The result is written into the saved
adapter, and a loaded adapter takes it from there: the order of discovery never decides what a stored row means.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from protfold_peft.adapters.architectures import ARCHITECTURES, Architecture, HeadAxis, architecture_of
from protfold_peft.errors import CheckpointError, ConfigError


@dataclass(frozen=True)
class HeadSplit:
    """How attention heads divide one axis of a weight: `index = head * width + j` along `axis`."""

    axis: HeadAxis
    count: int
    width: int


@dataclass(frozen=True)
class LinearMap:
    """One linear map `y = x W^T` of the model, `W` of shape `(d_out, d_in)`.

    `layer` is the layer's index in the model; `kind` the role of the map in its layer and `order` that role's place
    in the architecture's table.
    """

    path: str
    layer: int
    kind: str
    order: int
    d_out: int
    d_in: int
    heads: HeadSplit | None


@dataclass(frozen=True)
class Site:
    """An adapted linear map and its place in the shared tensor.

    `group` names the factors it shares, `row` is its index along their layer axis, `column` along their kind axis.
    """

    path: str
    group: str
    row: int
    column: int
    layer: int
    kind: str
    d_out: int
    d_in: int
    heads: HeadSplit | None

    def to_json(self) -> dict[str, Any]:
        """Everything but the path, in plain JSON types."""
        entry = asdict(self)
        del entry["path"]
        return entry

    @classmethod
    def from_json(cls, path: str, entry: dict[str, Any]) -> Site:
        """The inverse of `to_json`.

        Raises:
            CheckpointError: A field is missing, unknown or of the wrong type.
        """
        try:
            heads = entry["heads"]
            site = cls(path, **(entry | {"heads": None if heads is None else HeadSplit(**heads)}))
            numbers = [site.row, site.column, site.layer, site.d_out, site.d_in]
            if site.heads is not None:
                numbers += [site.heads.count, site.heads.width]
                if site.heads.axis not in ("output", "input"):
                    raise ValueError(f"head axis '{site.heads.axis}'")
            if any(type(number) is not int or number < 0 for number in numbers):
                raise ValueError("a size or index is not a whole number")
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"the adapter's layout entry for '{path}' is damaged ({error})") from error
        return site


def innermost(module: nn.Module) -> nn.Module:
    """The module under any adapter layers around it."""
    while isinstance(inner := getattr(module, "base_layer", None), nn.Module):
        module = inner
    return module


def find_maps(model: nn.Module) -> tuple[Architecture, list[LinearMap]]:
    """List every linear map of `model` that its architecture knows, layer by layer.

    Layers that already carry adapters are seen through to the linear map underneath.

    Raises:
        ConfigError: The architecture is not known, or a known module is not a plain linear layer of the size that
            the model's config states.
    """
    architecture = architecture_of(model)
    if architecture is None:
        known = "; ".join(f"{entry.name} (model types {', '.join(entry.model_types)})" for entry in ARCHITECTURES)
        model_type = getattr(getattr(model, "config", None), "model_type", None)
        raise ConfigError(
            f"tensor adapters do not know the layers of {type(model).__name__} (model type {model_type}); "
            f"they know {known}"
        )
    order = {projection.path: index for index, projection in enumerate(architecture.projections)}
    maps = []
    for path, module in model.named_modules():
        match = architecture.layer.fullmatch(path)
        if match is None or match[2] not in order:
            continue
        projection = architecture.projections[order[match[2]]]
        module = innermost(module)
        if not isinstance(module, nn.Linear):
            raise ConfigError(f"'{path}' is a {type(module).__name__}; tensor adapters change nn.Linear layers only")
        heads = None
        split = architecture.head_split(projection, model.config)
        if split is not None and projection.head_axis is not None:
            heads = HeadSplit(projection.head_axis, *split)
            size = module.out_features if heads.axis == "output" else module.in_features
            if heads.count * heads.width != size:
                raise ConfigError(
                    f"'{path}' has {size} {heads.axis} features, but the model's config states "
                    f"{heads.count} heads of width {heads.width}"
                )
        maps.append(
            LinearMap(
                path=path,
                layer=int(match[1]),
                kind=projection.kind,
                order=order[projection.path],
                d_out=module.out_features,
                d_in=module.in_features,
                heads=heads,
            )
        )
    if not maps:
        raise ConfigError(f"{type(model).__name__} holds none of the layers that {architecture.name} models have")
    return architecture, sorted(maps, key=lambda linear: (linear.layer, linear.order))


def select(
    model: nn.Module, target_modules: Sequence[str] | str | None, modules_to_save: Iterable[str] = ()
) -> list[LinearMap]:
    """The linear maps of `model` that `target_modules` names.

    A list holds full paths or ends of paths (`query` matches `...attention.self.query`), as in PEFT, but only maps
    inside the known layers are looked at: `output.dense` never reaches a folding trunk. A string is a regular
    expression for the whole path, or `all-linear` for every map in the table; None takes the architecture's default.

    Raises:
        ConfigError: An entry matches nothing, or everything it matches is in `modules_to_save`.
    """
    architecture, maps = find_maps(model)
    if target_modules is None:
        target_modules = architecture.default_targets
    if isinstance(target_modules, str):
        chosen = _matching_pattern(target_modules, maps, architecture)
    else:
        chosen = set()
        for target in target_modules:
            matched = {linear.path for linear in maps if _ends_with(linear.path, target)}
            if not matched:
                raise ConfigError(_no_match(model, target, architecture))
            chosen |= matched
    saved = {path for path in chosen for name in modules_to_save if re.match(rf"(^|.*\.){name}($|\..*)", path)}
    if not chosen - saved:
        raise ConfigError(
            f"every target module is also trained in full by modules_to_save={sorted(modules_to_save)}; "
            "remove it from one of the two"
            if saved
            else "target_modules is empty; name at least one module"
        )
    return [linear for linear in maps if linear.path in chosen - saved]


def _ends_with(path: str, target: str) -> bool:
    return path == target or path.endswith(f".{target}")


def _matching_pattern(pattern: str, maps: list[LinearMap], architecture: Architecture) -> set[str]:
    if pattern.lower() == "all-linear":
        return {linear.path for linear in maps}
    try:
        chosen = {linear.path for linear in maps if re.fullmatch(pattern, linear.path)}
    except re.error as error:
        raise ConfigError(f"target_modules='{pattern}' is not a regular expression ({error})") from error
    if not chosen:
        raise ConfigError(
            f"the regular expression target_modules='{pattern}' matches no adaptable module; it must match whole "
            f"paths such as '{maps[0].path}' (for ends of paths, give a list)"
        )
    return chosen


def _no_match(model: nn.Module, target: str, architecture: Architecture) -> str:
    """One line that says why `target` matches nothing and what would."""
    known = [projection.path for projection in architecture.projections]
    paths = [path for path, _ in model.named_modules()]
    if target in paths:
        reason = "is in the model, but is not among the modules that tensor adapters know there"
    elif any(path.endswith(f".{target}") for path in paths):
        reason = f"matches modules only outside the {architecture.name} layers"
    else:
        reason = "matches no module"
    endings = {".".join(path.split(".")[start:]) for path in known for start in range(path.count(".") + 1)}
    near = difflib.get_close_matches(target, sorted(endings), n=1)
    hint = f"did you mean '{near[0]}'? " if near else ""
    return f"target module '{target}' {reason}; {hint}valid in {architecture.name}: {', '.join(known)}"


def assign(maps: Sequence[LinearMap], group_of: Callable[[LinearMap], str]) -> tuple[Site, ...]:
    """Sort `maps` into groups and give each a row and a column.

    Rows count the layers that a group has, in the model's order; columns count its kinds, in the table's order.
    """
    groups: dict[str, list[LinearMap]] = {}
    for linear in maps:
        groups.setdefault(group_of(linear), []).append(linear)
    sites = []
    for group, members in groups.items():
        rows = {layer: row for row, layer in enumerate(sorted({linear.layer for linear in members}))}
        kinds = sorted({(linear.order, linear.kind) for linear in members})
        columns = {kind: column for column, (_, kind) in enumerate(kinds)}
        sites += [
            Site(
                path=linear.path,
                group=group,
                row=rows[linear.layer],
                column=columns[linear.kind],
                layer=linear.layer,
                kind=linear.kind,
                d_out=linear.d_out,
                d_in=linear.d_in,
                heads=linear.heads,
            )
            for linear in members
        ]
    return tuple(sites)


def check_fit(model: nn.Module, sites: Iterable[Site], layers: int) -> None:
    """Compare a stored layout with the model it is put into.

    Raises:
        ConfigError: The model's architecture is not known.
        CheckpointError: The model has another number of layers, lacks a site, or has it with other sizes or heads.
    """
    _, maps = find_maps(model)
    found = len({linear.layer for linear in maps})
    if found != layers:
        raise CheckpointError(f"the adapter was made for a model of {layers} layers; this one has {found}")
    by_path = {linear.path: linear for linear in maps}
    for site in sites:
        linear = by_path.get(site.path)
        if linear is None:
            raise CheckpointError(f"the adapter was made for another model: this one has no module '{site.path}'")
        if (linear.d_out, linear.d_in, linear.heads) != (site.d_out, site.d_in, site.heads):
            raise CheckpointError(
                f"the adapter was made for another model: '{site.path}' is {_size(site)} in the adapter "
                f"and {_size(linear)} in this model"
            )


def _size(linear: Site | LinearMap) -> str:
    heads = f", {linear.heads.count} heads" if linear.heads is not None else ""
    return f"{linear.d_out} x {linear.d_in}{heads}"
