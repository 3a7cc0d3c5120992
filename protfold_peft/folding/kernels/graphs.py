"""The trunk's blocks on short sequences as CUDA graphs: recorded once a length, replayed without the host.

Two thousand kernels of a few microseconds each take longer to launch than to run. A graph holds the addresses that it
was recorded with: those of packed weights, which stay where they are and are filled anew at the start of every
prediction. Lengths are rounded up to a multiple of 16 and the rest is
masked, which changes no real residue, so that there are few graphs.

Axis letters: `b` batch, `n` residues, `p` residues rounded up, `c` channels.
"""

from __future__ import annotations

from collections import OrderedDict
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


@dataclass(frozen=True)
class _Pass:
    """A recorded pass, the tensors it reads, and those it writes (`z` is both)."""

    graph: torch.cuda.CUDAGraph
    s: Tensor
    z: Tensor
    mask: Tensor
    new_s: Tensor


class TrunkGraphs:
    """The blocks of one trunk with the kernels of this package, recorded where that pays.

    Recording costs about what two passes without a graph cost, so a length is recorded when it is seen the second
    time: a single pass over a single sequence records nothing.
    """

    def __init__(self) -> None:
        self._kind: tuple[object, ...] = ()
        self._weights: list[PackedBlock] = []
        self._passes: OrderedDict[tuple[int, int], _Pass] = OrderedDict()
        self._seen: set[tuple[int, int]] = set()

    def __deepcopy__(self, memo: dict[int, Any]) -> TrunkGraphs:
        return TrunkGraphs()

    def __reduce__(self) -> tuple[type[TrunkGraphs], tuple[()]]:
        return TrunkGraphs, ()

    def clear(self) -> None:
        """Forget everything recorded."""
        self._passes.clear()
        self._seen.clear()
        self._weights = []

    def load(self, blocks: Any, dtype: torch.dtype) -> None:
        """Take the weights of all blocks as they are now; needed before `run`, in every prediction."""
        kind = (dtype, blocks[0].layernorm_1.weight.device, len(blocks))
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

    def run(self, s: Tensor, z: Tensor, mask: Tensor, *, graphs: bool) -> tuple[Tensor, Tensor]:
        """All blocks.

        Args:
            s: `(b, n, c_s)`.
            z: `(b, n, n, c_z)`; overwritten.
            mask: `(b, n)`, 1 at real residues.
            graphs: Whether recording is allowed.

        Returns:
            The new states, same shapes.
        """
        b, n, _ = s.shape
        p = padded_length(n)
        if not graphs or b * p * p > _MOST_PAIRS:
            return self._blocks(s, z.contiguous(), mask)
        key = (b, p)
        if key not in self._passes:
            s, z, mask = _padded(s, p, 1), _padded(z, p, 2), _padded(mask, p, 1)
            if key not in self._seen:
                self._seen.add(key)
                s, z = self._blocks(s, z.contiguous(), mask)
                return s[:, :n], z[:, :n, :n]
            self._record(key, s, z, mask)
        self._passes.move_to_end(key)
        recorded = self._passes[key]
        recorded.s.zero_()[:, :n] = s[:, :n]
        recorded.z.zero_()[:, :n, :n] = z[:, :n, :n]
        recorded.mask.zero_()[:, :n] = mask[:, :n]
        recorded.graph.replay()
        return recorded.new_s[:, :n].clone(), recorded.z[:, :n, :n].clone()

    def _blocks(self, s: Tensor, z: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        for weights in self._weights:
            s = update(s, z, mask, weights)
        return s, z

    def _record(self, key: tuple[int, int], s: Tensor, z: Tensor, mask: Tensor) -> None:
        if len(self._passes) == _MOST_GRAPHS:
            self._passes.popitem(last=False)
        s, z, mask = s.clone(), z.clone(), mask.clone()
        graph = torch.cuda.CUDAGraph()
        # What happens on other threads (writing results, fetching the next batch) is none of the recording's business.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            new_s, _ = self._blocks(s, z, mask)
        self._passes[key] = _Pass(graph, s, z, mask, new_s)


def _padded(x: Tensor, p: int, axes: int) -> Tensor:
    """`x` `(b, n, ...)` with its first `axes` axes after the batch filled up with zeros to `p`."""
    if x.shape[1] == p:
        return x
    out = x.new_zeros((x.shape[0], *(p,) * axes, *x.shape[1 + axes :]))
    out[(slice(None), *(slice(x.shape[1]),) * axes)] = x
    return out
