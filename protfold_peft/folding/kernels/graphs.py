"""The trunk's passes over short sequences as CUDA graphs: recorded once a length, replayed without the host.

Two thousand kernels of a few microseconds each take longer to launch than to run. A graph holds the addresses that it
was recorded with: those of packed weights, which stay where they are and are filled anew at the start of every
prediction, and the structure module's own, which are compared. Lengths are rounded up to a multiple of 16 and the rest
is masked, which changes no real residue, so that there are few graphs.

Axis letters: `b` batch, `n` residues, `p` residues rounded up, `c` channels.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from protfold_peft.folding.kernels.fast_block import PackedBlock, copy_weights, update

# Above this many pairs the device is busy for longer than the host needs to launch.
_MOST_PAIRS = 512 * 512
_MULTIPLE = 16
_MOST_GRAPHS = 16


def padded_length(n: int) -> int:
    """`n` rounded up to what graphs are recorded for."""
    return -(-n // _MULTIPLE) * _MULTIPLE


Place = Callable[[Tensor, Tensor, Tensor, Tensor], dict[str, Tensor]]
Key = tuple[int, int]


@dataclass(frozen=True)
class _Pass:
    """A recorded pass, the tensors it reads, and those it writes (`z` is both)."""

    graph: torch.cuda.CUDAGraph
    s: Tensor
    z: Tensor
    mask: Tensor
    aatype: Tensor
    new_s: Tensor
    placed: dict[str, Tensor]


class TrunkGraphs:
    """One trunk's passes with the kernels of this package, recorded where that pays.

    Recording costs about what two passes without a graph cost, so a length is recorded when it is seen the second
    time: a single pass over a single sequence records nothing. All graphs share their memory, as one runs at a time and
    what it gives is copied out.
    """

    def __init__(self) -> None:
        self._kind: tuple[object, ...] = ()
        self._weights: list[PackedBlock] = []
        self._passes: OrderedDict[Key, _Pass] = OrderedDict()
        self._seen: set[Key] = set()
        self._pool: Any = None
        self._pairs: Tensor | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> TrunkGraphs:
        return TrunkGraphs()

    def __reduce__(self) -> tuple[type[TrunkGraphs], tuple[()]]:
        return TrunkGraphs, ()

    def clear(self) -> None:
        """Forget everything recorded."""
        self._passes.clear()
        self._seen.clear()
        self._weights, self._pool, self._pairs = [], None, None

    def load(self, blocks: Any, dtype: torch.dtype, others: Iterable[Tensor]) -> None:
        """Take the weights of all blocks as they are now; needed before `run`, in every prediction.

        Args:
            blocks: The trunk's blocks.
            dtype: The format of their products.
            others: Weights that `run`'s `place` uses where they are.
        """
        kind = (dtype, blocks[0].layernorm_1.weight.device, len(blocks), *(tensor.data_ptr() for tensor in others))
        if kind != self._kind:
            self.clear()
            self._kind = kind
        if self._weights:
            copy_weights(self._weights, blocks)
        else:
            self._weights = [PackedBlock(block, dtype) for block in blocks]

    def unload(self) -> None:
        """Let go of packed weights that no graph needs."""
        if not self._passes:
            self._weights = []

    def run(
        self, s: Tensor, z: Tensor, mask: Tensor, aatype: Tensor, place: Place | None, *, graphs: bool
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """All blocks, and what comes after them.

        Args:
            s: `(b, n, c_s)`.
            z: `(b, n, n, c_z)`; overwritten.
            mask: `(b, n)`, 1 at real residues.
            aatype: `(b, n)`.
            place: The structure module, of the new states, `aatype` and `mask`: to be recorded with the blocks.
                None: it is not to be.
            graphs: Whether recording is allowed.

        Returns:
            The new states, same shapes, and what `place` gave, if it ran.
        """
        b, n, _ = s.shape
        p = padded_length(n)
        if not graphs or b * p * p > _MOST_PAIRS:
            return (*self._blocks(s, z.contiguous(), mask), {})
        key = (b, p)
        if key not in self._passes:
            if key not in self._seen:
                # As the graph will run, so that everything is compiled before it is recorded.
                self._seen.add(key)
                padded = _padded(s, p, 1), _padded(z, p, 2).contiguous(), _padded(mask, p, 1)
                s, z = self._blocks(*padded)
                placed = {} if place is None else place(s, z, _padded(aatype, p, 1), padded[2])
                return s[:, :n], z[:, :n, :n], _cut(placed, n)
            self._record(key, s, z, mask, aatype, place)
        self._passes.move_to_end(key)
        recorded = self._passes[key]
        _fill(recorded.s, s, 1)
        _fill(recorded.z, z, 2)
        _fill(recorded.mask, mask, 1)
        _fill(recorded.aatype, aatype, 1)
        recorded.graph.replay()
        placed = {name: tensor.clone() for name, tensor in _cut(recorded.placed, n).items()}
        return recorded.new_s[:, :n].clone(), recorded.z[:, :n, :n].clone(), placed

    def _blocks(self, s: Tensor, z: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        for weights in self._weights:
            s = update(s, z, mask, weights)
        return s, z

    def _record(self, key: Key, s: Tensor, z: Tensor, mask: Tensor, aatype: Tensor, place: Place | None) -> None:
        """Record a pass at a padded size, in the place of the one not used for longest where there are too many."""
        b, p = key
        if self._pairs is None:
            self._pairs = z.new_empty(_MOST_PAIRS * z.shape[-1])
            self._pool = torch.cuda.graph_pool_handle()
        if len(self._passes) == _MOST_GRAPHS:
            self._passes.popitem(last=False)
        s, mask, aatype = (x.new_zeros((b, p, *x.shape[2:])) for x in (s, mask, aatype))
        z = self._pairs[: b * p * p * z.shape[-1]].view(b, p, p, -1)
        graph = torch.cuda.CUDAGraph()
        # What happens on other threads (writing results, fetching the next batch) is none of the recording's business.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            new_s, _ = self._blocks(s, z, mask)
            placed = {} if place is None else place(new_s, z, aatype, mask)
        self._passes[key] = _Pass(graph, s, z, mask, aatype, new_s, placed)


def _cut(placed: dict[str, Tensor], n: int) -> dict[str, Tensor]:
    """The structure module's outputs for the first `n` residues; all but `single` have an axis of steps first."""
    return {name: tensor[:, :n] if name == "single" else tensor[:, :, :n] for name, tensor in placed.items()}


def _fill(target: Tensor, x: Tensor, axes: int) -> None:
    """Write `x` `(b, n, ...)` into the corner of `target` `(b, p, ...)`, zeros elsewhere."""
    if target.shape != x.shape:
        target.zero_()
    target[(slice(None), *(slice(x.shape[1]),) * axes)] = x


def _padded(x: Tensor, p: int, axes: int) -> Tensor:
    """`x` `(b, n, ...)` with its first `axes` axes after the batch filled up with zeros to `p`."""
    if x.shape[1] == p:
        return x
    out = x.new_empty((x.shape[0], *(p,) * axes, *x.shape[1 + axes :]))
    _fill(out, x, axes)
    return out
