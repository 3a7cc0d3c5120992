"""A site: one linear map of a model that is adapted, and where it sits along the shared tensor.

`discovery` lists the maps of a model and selects those the user named; `assign` sorts them into groups that share
factors and gives each its row along the layer axis and its column along the kind axis. The result is written into the
saved adapter, and a loaded adapter takes it from there: the order of discovery never decides what a stored row means.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor
from torch.nn import functional as F

from protfold_peft.adapters.architectures import HeadAxis


@dataclass(frozen=True)
class HeadSplit:
    """How attention heads divide one axis of a weight, `axis`.

    The place of element j of head h is `h * width + j`, or, where `interleaved`, `j * count + h`.
    """

    axis: HeadAxis
    count: int
    width: int
    interleaved: bool = False


@dataclass(frozen=True)
class RowBlocks:
    """Which outputs of a fused module belong to one of its maps: `block` of every `stride`, from `start` on.

    GPT-2's `[q | k | v]` of width d has one stride of 3 d; ESMFold's `(head, [q, k, v], j)` has a stride for each head.
    """

    start: int
    block: int
    stride: int

    def place(self, rows: Tensor, total: int) -> Tensor:
        """Put the last axis of `rows`, `(..., n_rows)`, where it belongs among `total` outputs; zero elsewhere."""
        blocks = rows.unflatten(-1, (total // self.stride, self.block))
        return F.pad(blocks, (self.start, self.stride - self.start - self.block)).flatten(-2)

    def take(self, outputs: Tensor) -> Tensor:
        """The inverse: `(..., total)` to `(..., n_rows)`."""
        return outputs.unflatten(-1, (-1, self.stride))[..., self.start : self.start + self.block].flatten(-2)


@dataclass(frozen=True)
class LinearMap:
    """One linear map `y = x W^T` of the model, `W` of shape `(d_out, d_in)`: a linear module, or a part of one.

    Attributes:
        path: Of the module.
        layer: Index of the layer in its stack.
        kind: The role of the map in its layer.
        order: That role's place among the roles.
        stack: Prefix of its groups; maps of different stacks never share factors.
        rows: Its outputs within those of a fused module; None: all.
        transposed: The module keeps its weight as `(d_in, d_out)`.
        batch_first: See `architectures.Projection`.
    """

    path: str
    layer: int
    kind: str
    order: int
    d_out: int
    d_in: int
    heads: HeadSplit | None
    stack: str = ""
    rows: RowBlocks | None = None
    transposed: bool = False
    batch_first: bool = True

    @property
    def key(self) -> str:
        """Path and, for a part of a fused module, kind: `...attn.c_attn[query]`."""
        return site_key(self.path, self.kind, self.rows)


@dataclass(frozen=True)
class Site:
    """An adapted linear map and its place in the shared tensor.

    `group` names the factors it shares, `row` is its index along their layer axis, `column` along their kind axis.
    The other fields are those of `LinearMap`.
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
    rows: RowBlocks | None = None
    transposed: bool = False
    batch_first: bool = True

    @property
    def key(self) -> str:
        """As `LinearMap.key`."""
        return site_key(self.path, self.kind, self.rows)

    def check(self) -> None:
        """See that sizes and indices of a stored site make sense.

        Raises:
            ValueError: They do not.
        """
        sizes = [self.d_out, self.d_in]
        indices = [self.row, self.column, self.layer]
        if self.heads is not None:
            sizes += [self.heads.count, self.heads.width]
            if self.heads.count * self.heads.width != (self.d_out if self.heads.axis == "output" else self.d_in):
                raise ValueError("the heads do not fill their axis")
        if self.rows is not None:
            sizes += [self.rows.block, self.rows.stride]
            indices.append(self.rows.start)
            if self.rows.start + self.rows.block > self.rows.stride or self.d_out % self.rows.block:
                raise ValueError("the rows of a fused module overlap")
        if any(type(number) is not int or number < 0 for number in sizes + indices) or 0 in sizes:
            raise ValueError("a size or index is not a whole number")
        if not isinstance(self.group, str) or not isinstance(self.kind, str) or "." in self.group:
            raise ValueError("a name is not a word")


def site_key(path: str, kind: str, rows: RowBlocks | None) -> str:
    """How a map is called where its module's path is not enough."""
    return path if rows is None else f"{path}[{kind}]"


class GroupKey(NamedTuple):
    """Maps with equal keys share factors. Groups are called by `label`, and by their sizes where that is not enough."""

    label: str
    sizes: tuple[int, ...] = ()


def assign(maps: Sequence[LinearMap], group_of: Callable[[LinearMap], GroupKey]) -> tuple[Site, ...]:
    """Sort `maps` into groups and give each a row and a column.

    Rows count the layers that a group has, in the model's order; columns count its kinds, in the table's order.
    """
    groups: dict[tuple[str, GroupKey], list[LinearMap]] = {}
    for linear in maps:
        groups.setdefault((linear.stack, group_of(linear)), []).append(linear)
    labels = [(stack, key.label) for stack, key in groups]
    sites = []
    for (stack, key), members in groups.items():
        unique = labels.count((stack, key.label)) == 1
        name = "_".join([stack] * bool(stack) + [key.label] + ["x".join(map(str, key.sizes))] * (not unique))
        rows = {layer: row for row, layer in enumerate(sorted({linear.layer for linear in members}))}
        kinds = sorted({(linear.order, linear.kind) for linear in members})
        columns = {kind: column for column, (_, kind) in enumerate(kinds)}
        sites += [
            Site(
                path=linear.path,
                group=name,
                row=rows[linear.layer],
                column=columns[linear.kind],
                layer=linear.layer,
                kind=linear.kind,
                d_out=linear.d_out,
                d_in=linear.d_in,
                heads=linear.heads,
                rows=linear.rows,
                transposed=linear.transposed,
                batch_first=linear.batch_first,
            )
            for linear in members
        ]
    order = {linear.key: index for index, linear in enumerate(maps)}
    return tuple(sorted(sites, key=lambda site: order[site.key]))
