"""Which linear maps does a model have?

`find_maps` lists them: those of a known architecture (`architectures.py`) with layer, kind and heads, and every other
linear module by its shape, with the first number in its path as its layer and the rest of the path as its kind.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from transformers.pytorch_utils import Conv1D

from protfold_peft.adapters.architectures import Architecture, Projection, Stack, architecture_of
from protfold_peft.adapters.sites import HeadSplit, LinearMap, RowBlocks
from protfold_peft.errors import ConfigError

# The stack of maps that a known architecture has beside those of its table.
OTHER = "other"
# What PEFT's wrappers keep inside themselves.
_WRAPPED = {"base_layer", "original_module", "modules_to_save"}


def innermost(module: nn.Module) -> nn.Module:
    """The module under any adapter layers around it."""
    while isinstance(inner := getattr(module, "base_layer", None), nn.Module):
        module = inner
    return module


def linear_shape(module: nn.Module) -> tuple[int, int, bool] | None:
    """`d_out`, `d_in` and whether the weight is kept transposed; None if the module is not a linear map.

    Quantised layers count: they are recognised by `in_features` and `out_features`.
    """
    if isinstance(module, Conv1D):
        d_in, d_out = module.weight.shape
        return d_out, d_in, True
    # The output projection of nn.MultiheadAttention is used by its weight alone: a layer in its place never runs.
    if isinstance(module, (NonDynamicallyQuantizableLinear, nn.Bilinear)):
        return None
    d_out, d_in = getattr(module, "out_features", None), getattr(module, "in_features", None)
    return (d_out, d_in, False) if type(d_out) is int and type(d_in) is int else None


def find_maps(model: nn.Module) -> tuple[Architecture | None, list[LinearMap]]:
    """List every linear map of `model`, layer by layer: those of its architecture first, then the others.

    Layers that already carry adapters are seen through to the linear map underneath.

    Raises:
        ConfigError: A module of a known architecture is not of the size that the model's config states.
    """
    architecture = architecture_of(model)
    known: list[LinearMap] = []
    others: list[LinearMap] = []
    for path, wrapped in model.named_modules():
        if _WRAPPED & set(path.split(".")):
            continue
        module = innermost(wrapped)
        shape = linear_shape(module)
        if shape is None:
            continue
        maps = _known_maps(architecture, model, path, shape) if architecture is not None else []
        known += maps
        if not maps:
            others.append(_other_map(path, shape, len(others), OTHER if architecture else ""))
    known.sort(key=lambda linear: (linear.stack, linear.layer, linear.order))
    return architecture, known + others


def _known_maps(
    architecture: Architecture, model: nn.Module, path: str, shape: tuple[int, int, bool]
) -> list[LinearMap]:
    """The maps that the architecture sees in the module at `path`: none, one, or the parts of a fused one."""
    for stack in architecture.stacks:
        match = stack.layer.fullmatch(path)
        if match is None:
            continue
        return [
            _known_map(stack, projection, order, model, path, int(match[1]), shape)
            for order, projection in enumerate(stack.projections)
            if projection.path == match[2]
        ]
    return []


def _known_map(
    stack: Stack,
    projection: Projection,
    order: int,
    model: nn.Module,
    path: str,
    layer: int,
    shape: tuple[int, int, bool],
) -> LinearMap:
    """The map of one entry of an architecture's table.

    Raises:
        ConfigError: The module has other sizes than the model's config states.
    """
    total, d_in, transposed = shape
    d_out = total // projection.parts
    heads, rows = None, None
    if projection.head_axis is not None:
        split = stack.heads(projection, model.config)
        heads = HeadSplit(projection.head_axis, split.count, split.width)
        size = d_out if heads.axis == "output" else d_in
        if heads.count * heads.width != size:
            raise ConfigError(
                f"'{path}' has {size} {heads.axis} features, but the model's config states "
                f"{heads.count} heads of width {heads.width}"
            )
    if projection.parts > 1:
        block = heads.width if projection.part_per_head and heads is not None else d_out
        rows = RowBlocks(projection.part * block, block, projection.parts * block)
    return LinearMap(
        path=path,
        layer=layer,
        kind=projection.kind,
        order=order,
        d_out=d_out,
        d_in=d_in,
        heads=heads,
        stack=stack.name,
        rows=rows,
        transposed=transposed,
        batch_first=projection.batch_first,
    )


def _other_map(path: str, shape: tuple[int, int, bool], order: int, stack: str) -> LinearMap:
    """A linear module that no table entry knows: its layer is the first number in its path, its kind the rest."""
    parts = path.split(".")
    number = next((index for index, part in enumerate(parts) if part.isdecimal()), None)
    layer = 0 if number is None else int(parts.pop(number))
    return LinearMap(
        path=path,
        layer=layer,
        kind="_".join(parts),
        order=order,
        d_out=shape[0],
        d_in=shape[1],
        heads=None,
        stack=stack,
        transposed=shape[2],
        # Experts see the tokens that were routed to them.
        batch_first="experts" not in parts,
    )


def n_layers(maps: Iterable[LinearMap]) -> int:
    """How many layers the main stack has."""
    return len({linear.layer for linear in maps if linear.stack == ""})
