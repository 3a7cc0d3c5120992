"""Which stretch of which chain is sample number k: a function of the seed and k alone.

A run can then be repeated, split over any number of workers or processes, and entered at any step, and the samples
are the same. No random state is carried along.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import Dataset

from protfold_peft.data.chains import TrainingChain
from protfold_peft.losses.masked_lm import MaskedTokens, mask_tokens
from protfold_peft.structure.residues import UNKNOWN

# Residue type that stands for a hidden one.
HIDDEN = UNKNOWN + 1
# Keep the draws of the order of chains, of the order of batches and of the members of clusters apart from those of the
# crops, whose second number is a step.
_ORDER, _PACKS, _MEMBERS = 2**32 - 1, 2**32 - 2, 2**32 - 3


@dataclass(frozen=True, eq=False)
class Crop:
    """One training sample.

    Attributes:
        chain: The stretch of the chain.
        clamped: Whether FAPE is clamped for this sample.
        masked: `(n,)` residue types with some hidden, and which are to be told; None if none is.
    """

    chain: TrainingChain
    clamped: bool
    masked: MaskedTokens | None = None


class CropDataset(Dataset[Crop]):
    """The samples of a run, in order.

    The chains, or groups of chains, take turns, in a new order every time around.

    Args:
        chains: At least one.
        crop_size: Longest stretch, in residues; shorter chains are taken whole.
        batch_size: Samples of one optimizer step, over all processes.
        steps: Optimizer steps of the run.
        seed: Of the order, the crops, the clamps and the hidden residues.
        clamped_fraction: How often FAPE is clamped (AlphaFold: 0.9).
        groups: Places of chains, in groups of which each gives one chain, drawn anew, in a turn; None: every chain is
            its own.
        masked: Hide residues, for masked language modelling.
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
        groups: Sequence[Sequence[int]] | None = None,
        masked: bool = False,
    ) -> None:
        self.chains = chains
        self.crop_size = crop_size
        self.batch_size = batch_size
        self.steps = steps
        self.seed = seed
        self.clamped_fraction = clamped_fraction
        self.groups = groups
        self.masked = masked
        self._order: tuple[int, np.ndarray] | None = None

    @property
    def turn(self) -> int:
        """Samples until every chain, or group, had its turn."""
        return len(self.chains) if self.groups is None else len(self.groups)

    def __len__(self) -> int:
        return self.batch_size * self.steps

    def place(self, k: int) -> int:
        """Which chain sample `k` is of."""
        turn, nth = divmod(k, self.turn)
        if self._order is None or self._order[0] != turn:
            self._order = (turn, np.random.default_rng([self.seed, _ORDER, turn]).permutation(self.turn))
        place = int(self._order[1][nth])
        if self.groups is None:
            return place
        members = self.groups[place]
        return members[int(np.random.default_rng([self.seed, _MEMBERS, k]).integers(len(members)))]

    def __getitem__(self, k: int) -> Crop:
        """Sample `k` of the run, from 0: number `k % batch_size` of step `k // batch_size`."""
        if not 0 <= k < len(self):
            raise IndexError(f"sample {k} of a run of {len(self)}")
        return self.sample(k)

    def sample(self, k: int) -> Crop:
        """Sample `k` of a run that is long enough."""
        rng = np.random.default_rng([self.seed, *divmod(k, self.batch_size)])
        clamped = bool(rng.random() < self.clamped_fraction)
        chain = random_crop(self.chains[self.place(k)], self.crop_size, rng)
        return Crop(chain, clamped, self._hide(chain, rng) if self.masked else None)

    @staticmethod
    def _hide(chain: TrainingChain, rng: np.random.Generator) -> MaskedTokens:
        types = torch.from_numpy(chain.aatype)[None]
        generator = torch.Generator().manual_seed(int(rng.integers(2**63)))
        hidden = mask_tokens(types, types < UNKNOWN, HIDDEN, torch.arange(UNKNOWN), generator=generator)
        return MaskedTokens(hidden.tokens[0], hidden.chosen[0])


@dataclass(frozen=True, eq=False)
class Part:
    """What one process computes at once: some of the samples of a step.

    Attributes:
        crops: At least one.
        number: Of the part in the run, from 0; random numbers are drawn from it.
        step: The optimizer step it is of, from 0.
        share: The mean over these counts this many times in the mean over the parts, so that it is the mean over the
            samples of the step.
    """

    crops: tuple[Crop, ...]
    number: int
    step: int
    share: float


class PartDataset(Dataset[Part]):
    """The steps of a run, each in `parts`: processes times what each of them accumulates.

    Args:
        crops: The samples.
        parts: In how many parts a step is computed; the samples of the step are the same for every number.
        tokens: Samples of a step are those of similar length that have, padding counted, at most this many residues
            in all, and not a fixed number; None: `crops.batch_size` in order.
        lengths: Of the chains; needed for `tokens`.
    """

    def __init__(
        self, crops: CropDataset, parts: int, *, tokens: int | None = None, lengths: Sequence[int] | None = None
    ) -> None:
        self.crops = crops
        self.parts = parts
        self.tokens = tokens
        self.lengths = lengths
        # Packs of the turns so far, and how many steps come before each.
        self._starts = [0]
        self._packs: tuple[int, list[list[int]]] | None = None

    def __len__(self) -> int:
        return self.crops.steps * self.parts

    def samples(self, step: int) -> list[int]:
        """The numbers of the samples of a step, from 0."""
        if self.tokens is None:
            return list(range(step * self.crops.batch_size, (step + 1) * self.crops.batch_size))
        turn = 0
        while True:
            if turn + 1 == len(self._starts):
                self._starts.append(self._starts[turn] + len(self._pack(turn)))
            if step < self._starts[turn + 1]:
                return self._pack(turn)[step - self._starts[turn]]
            turn += 1

    def _pack(self, turn: int) -> list[list[int]]:
        """The samples of a turn in packs of similar lengths that keep to the tokens."""
        if self._packs is not None and self._packs[0] == turn:
            return self._packs[1]
        assert self.tokens is not None
        assert self.lengths is not None
        size = self.crops.crop_size
        numbers = range(turn * self.crops.turn, (turn + 1) * self.crops.turn)
        length = {k: min(self.lengths[self.crops.place(k)], size) for k in numbers}
        packs: list[list[int]] = []
        current: list[int] = []
        # Sorted upwards: the one at hand is the longest of the pack it would join.
        for k in sorted(numbers, key=lambda k: (length[k], k)):
            if current and (len(current) + 1) * length[k] > self.tokens:
                packs.append(current)
                current = []
            current.append(k)
        packs.append(current)
        order = np.random.default_rng([self.crops.seed, _PACKS, turn]).permutation(len(packs))
        self._packs = (turn, [packs[i] for i in order])
        return self._packs[1]

    def __getitem__(self, k: int) -> Part:
        """Part `k % parts` of step `k // parts`."""
        if not 0 <= k < len(self):
            raise IndexError(f"part {k} of a run of {len(self)}")
        step, part = divmod(k, self.parts)
        samples = self.samples(step)
        own = samples[part :: self.parts]
        share = len(own) * self.parts / len(samples)
        # A process without a sample has to run one all the same, which does not count.
        return Part(tuple(self.crops.sample(sample) for sample in own or samples[:1]), k, step, share)


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
