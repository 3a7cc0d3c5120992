"""Which stretch of which chain is sample number k: a function of the seed and k alone.

A run can then be repeated, split over any number of workers or processes, and entered at any step, and the samples
are the same. No random state is carried along.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch.utils.data import Dataset

from protfold_peft.data.chains import TrainingChain

# Keeps the draws of the order of chains apart from those of the crops, whose second number is a step.
_ORDER = 2**32 - 1


@dataclass(frozen=True, eq=False)
class Crop:
    """One training sample.

    Attributes:
        chain: The stretch of the chain.
        clamped: Whether FAPE is clamped for this sample.
    """

    chain: TrainingChain
    clamped: bool


class CropDataset(Dataset[Crop]):
    """The samples of a run, in order: to be read sequentially.

    The chains take turns, in a new order every time around.

    Args:
        chains: At least one.
        crop_size: Longest stretch, in residues; shorter chains are taken whole.
        batch_size: Samples of one optimizer step, over all processes.
        steps: Optimizer steps of the run.
        seed: Of the order, the crops and the clamps.
        clamped_fraction: How often FAPE is clamped (AlphaFold: 0.9).
    """

    def __init__(
        self,
        chains: Sequence[TrainingChain],
        *,
        crop_size: int,
        batch_size: int,
        steps: int,
        seed: int,
        clamped_fraction: float = 0.9,
    ) -> None:
        self.chains = tuple(chains)
        self.crop_size = crop_size
        self.batch_size = batch_size
        self.steps = steps
        self.seed = seed
        self.clamped_fraction = clamped_fraction

    def __len__(self) -> int:
        return self.batch_size * self.steps

    def __getitem__(self, k: int) -> Crop:
        """Sample `k` of the run: number `k % batch_size` of step `k // batch_size`, both from 0."""
        if not 0 <= k < len(self):
            raise IndexError(f"sample {k} of a run of {len(self)}")
        step, sample = divmod(k, self.batch_size)
        turn, place = divmod(k, len(self.chains))
        order = np.random.default_rng([self.seed, _ORDER, turn]).permutation(len(self.chains))
        rng = np.random.default_rng([self.seed, step, sample])
        clamped = bool(rng.random() < self.clamped_fraction)
        return Crop(random_crop(self.chains[order[place]], self.crop_size, rng), clamped)


def random_crop(chain: TrainingChain, size: int, rng: np.random.Generator) -> TrainingChain:
    """A contiguous stretch of at most `size` residues.

    Every stretch with two resolved residues or more is as likely as any other; one with fewer has nothing to learn
    from and is taken only if there is no other.
    """
    if len(chain) <= size:
        return chain
    resolved = np.concatenate([[0], np.cumsum(chain.has_frame)])
    counts = resolved[size:] - resolved[:-size]
    starts = np.flatnonzero(counts >= 2)
    if len(starts) == 0:
        starts = np.arange(len(counts))
    start = int(starts[rng.integers(len(starts))])
    return chain.crop(start, start + size)
