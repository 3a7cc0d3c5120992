"""Which chain of a model stands for which chain of the reference.

Chain ids say nothing: a trimer whose chains are exchanged scores 0.38 by id and 0.91 mapped. The best mapping is the
one with the highest TM-score of the whole complex. Up to `MAX_EXACT` mappings are all compared, which covers five
equal chains and any complex of different ones; beyond that, mappings grown around single chains are refined by
exchanges.

Mappings are ranked by a fast form of the score: superpositions started from every chain and from all of them, weighted
again and again by 1 / (1 + d^2 / d0^2)^2, which climbs to a maximum of the TM-score.

Axis letters: `p` mappings, `n` residues of all chains of the reference.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from protfold_peft.errors import StructureError
from protfold_peft.metrics.correspondence import AUTO, MIN_IDENTITY, Correspondence, correspond
from protfold_peft.metrics.superpose import superpose
from protfold_peft.metrics.tm_score import tm_d0
from protfold_peft.structure.residues import ATOM_INDEX
from protfold_peft.structure.types import Chain

# Mappings that are all compared: 5! is 120.
MAX_EXACT = 120
# A chain stands for another only if it is almost as similar as the most similar one.
SIMILARITY_SLACK = 0.1

_ITERATIONS = 10
# Chains of the reference that mappings are grown around when there are too many to compare, and the shorter climb from
# these chains that ranks them: there are hundreds of exchanges of large chains.
_ANCHORS = 3
_FEW_ITERATIONS = 3
# Mappings of a symmetric complex differ by less than this, which is noise of model and search: equal chain ids decide,
# so that a model in the right order keeps it (as in US-align and OpenStructure).
_TIE = 2e-3
_LEAST_GAIN = 1e-6
# Points worked on at once, to bound memory.
_POINTS = 1_000_000

# The model's chain for every chain of the reference; -1 for none.
Mapping = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class ChainMatch:
    """A chain of the model and the chain of the reference that it stands for, by their places in the file."""

    model: int
    reference: int
    residues: Correspondence


@dataclass(frozen=True, eq=False)
class ChainMapping:
    """The matched chains of a complex.

    Attributes:
        matches: In the order of the reference's chains; those without a partner are left out.
        exact: Whether all possible mappings were compared.
    """

    matches: tuple[ChainMatch, ...]
    exact: bool


def map_chains(
    model: Sequence[Chain], reference: Sequence[Chain], *, way: str = AUTO, min_identity: float = MIN_IDENTITY
) -> ChainMapping:
    """Map the chains of a model onto those of the reference, for the best TM-score of the complex.

    As many chains as possible are mapped, each onto at most one. Chains match where their residues do (`correspond`),
    and only those that share almost as many residues as the most similar ones (0.9). Mappings within 0.002 of the best
    are decided by the number of equal chain ids, then by the score.

    Raises:
        StructureError: No chain of the model matches one of the reference; the message is that of the longest ones.
    """
    matches = _candidates(model, reference, way, min_identity)
    options = [[i for i in range(len(model)) if (i, j) in matches] for j in range(len(reference))]
    found = list(islice(_mappings(options), MAX_EXACT + 1))
    exact = len(found) <= MAX_EXACT
    if len(found) == 1:
        best = found[0]
    else:
        scorer = _Scorer(model, reference, matches, thorough=exact)
        best = _best(found, scorer, model, reference) if exact else _refined(options, scorer, model, reference)
    return ChainMapping(
        tuple(ChainMatch(i, j, matches[i, j]) for j, i in enumerate(best) if i >= 0),
        exact,
    )


def _candidates(
    model: Sequence[Chain], reference: Sequence[Chain], way: str, min_identity: float
) -> dict[tuple[int, int], Correspondence]:
    """Pairs of chains that may stand for each other, by their places.

    Raises:
        StructureError: There is none.
    """
    found: dict[tuple[int, int], Correspondence] = {}
    refusals: dict[tuple[int, int], StructureError] = {}
    # Equal chains of a large complex are matched once.
    seen: dict[tuple[object, ...], Correspondence | StructureError] = {}
    for i, chain in enumerate(model):
        for j, other in enumerate(reference):
            key = (*_identity_of(chain), *_identity_of(other))
            if key not in seen:
                try:
                    seen[key] = correspond(chain, other, way=way, min_identity=min_identity)
                except StructureError as error:
                    seen[key] = error
            outcome = seen[key]
            if isinstance(outcome, StructureError):
                refusals[i, j] = outcome
            else:
                found[i, j] = outcome
    if not found:
        longest = max(refusals, key=lambda pair: (len(model[pair[0]]), len(reference[pair[1]])))
        raise refusals[longest]
    # Identity is NaN where no name can be compared.
    worth = {pair: np.nan_to_num(match.identity) * match.n_matched for pair, match in found.items()}
    of_model = {i: max(worth[pair] for pair in found if pair[0] == i) for i, _ in found}
    of_reference = {j: max(worth[pair] for pair in found if pair[1] == j) for _, j in found}
    return {
        (i, j): match
        for (i, j), match in found.items()
        if not worth[i, j] < (1 - SIMILARITY_SLACK) * min(of_model[i], of_reference[j])
    }


def _identity_of(chain: Chain) -> tuple[object, ...]:
    """What a correspondence depends on, coordinates of breaks aside."""
    return chain.sequence, chain.residue_names, chain.residue_numbers.tobytes(), chain.insertion_codes


def _mappings(options: Sequence[Sequence[int]]) -> Iterator[Mapping]:
    """All mappings with as many chains as possible; each chain of the model is used once."""
    size = _most_mapped(options)

    def extend(mapping: list[int], used: frozenset[int], missing: int) -> Iterator[Mapping]:
        if len(mapping) == len(options):
            yield tuple(mapping)
            return
        for i in options[len(mapping)]:
            if i not in used:
                yield from extend([*mapping, i], used | {i}, missing)
        if missing:
            yield from extend([*mapping, -1], used, missing - 1)

    return extend([], frozenset(), len(options) - size)


def _most_mapped(options: Sequence[Sequence[int]]) -> int:
    """Size of a maximum matching, by augmenting paths (Kuhn)."""
    owner: dict[int, int] = {}

    def place(j: int, tried: set[int]) -> bool:
        for i in options[j]:
            if i not in tried:
                tried.add(i)
                if i not in owner or place(owner[i], tried):
                    owner[i] = j
                    return True
        return False

    return sum(place(j, set()) for j in range(len(options)))


def _best(found: Sequence[Mapping], scorer: _Scorer, model: Sequence[Chain], reference: Sequence[Chain]) -> Mapping:
    scores = scorer.score(found)
    top = float(scores.max())
    equal = [(score, mapping) for mapping, score in zip(found, scores.tolist(), strict=True) if score >= top - _TIE]
    return max(equal, key=lambda each: (_same_ids(each[1], model, reference), each[0]))[1]


def _same_ids(mapping: Mapping, model: Sequence[Chain], reference: Sequence[Chain]) -> int:
    return sum(i >= 0 and model[i].id == reference[j].id for j, i in enumerate(mapping))


def _refined(
    options: Sequence[Sequence[int]], scorer: _Scorer, model: Sequence[Chain], reference: Sequence[Chain]
) -> Mapping:
    """The best mapping grown around single chains, then improved by exchanges until none helps."""
    anchors = sorted((j for j in range(len(options)) if options[j]), key=lambda j: -len(reference[j]))[:_ANCHORS]
    grown = {scorer.grow(j, i, options) for j in anchors for i in options[j]}
    candidates = sorted(grown)
    best, top = candidates[0], 0.0
    while True:
        scores = scorer.score(candidates)
        place = int(scores.argmax())
        if float(scores[place]) <= top + _LEAST_GAIN:
            return _best([best, *candidates], scorer, model, reference)
        best, top = candidates[place], float(scores[place])
        candidates = list(_exchanges(best, options)) or [best]


def _exchanges(mapping: Mapping, options: Sequence[Sequence[int]]) -> Iterator[Mapping]:
    """Mappings that differ by two chains exchanged, or one replaced by a free one."""
    free = {i for choices in options for i in choices} - set(mapping)
    for j, i in enumerate(mapping):
        for other in sorted(free.intersection(options[j])):
            yield (*mapping[:j], other, *mapping[j + 1 :])
        for k in range(j + 1, len(mapping)):
            swapped = mapping[k] in options[j] or mapping[k] < 0, i in options[k] or i < 0
            if all(swapped) and mapping[k] != i:
                yield (*mapping[:j], mapping[k], *mapping[j + 1 : k], i, *mapping[k + 1 :])


class _Scorer:
    """TM-score of mappings, from a few weighted superpositions each."""

    def __init__(
        self,
        model: Sequence[Chain],
        reference: Sequence[Chain],
        matches: dict[tuple[int, int], Correspondence],
        *,
        thorough: bool = True,
    ) -> None:
        places = sorted(range(len(reference)), key=lambda j: -len(reference[j]))
        self.starting = places if thorough else places[:_ANCHORS]
        self.iterations = _ITERATIONS if thorough else _FEW_ITERATIONS
        ca = ATOM_INDEX["CA"]
        self.target = torch.from_numpy(np.concatenate([chain.atom_positions[:, ca] for chain in reference]))
        present = np.concatenate([chain.atom_mask[:, ca] for chain in reference])
        self.owner = torch.from_numpy(np.repeat(np.arange(len(reference)), [len(chain) for chain in reference]))
        self.starts = np.cumsum([0, *(len(chain) for chain in reference)])
        self.length = max(int(present.sum()), 1)
        self.d0 = float(tm_d0(torch.tensor(self.length)))
        self.points: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        for (i, j), match in matches.items():
            rows = match.model_index
            there = (rows >= 0) & model[i].atom_mask[rows, ca] & present[self.starts[j] : self.starts[j + 1]]
            positions = np.where(there[:, None], model[i].atom_positions[rows, ca], 0.0)
            self.points[i, j] = torch.from_numpy(positions), torch.from_numpy(there)

    def score(self, mappings: Sequence[Mapping]) -> Tensor:
        """`(p,)` float64 scores."""
        chunk = max(1, _POINTS // max(1, len(self.target)))
        return torch.cat([self._score(mappings[at : at + chunk]) for at in range(0, len(mappings), chunk)])

    def _score(self, mappings: Sequence[Mapping]) -> Tensor:
        """`(m,)` best TM-scores found for mappings, from starts on all chains and on single ones."""
        laid = [self._lay(mapping) for mapping in mappings]
        model = torch.stack([positions for positions, _ in laid])
        mask = torch.stack([there for _, there in laid])
        target = self.target.expand_as(model)
        best = model.new_zeros(len(mappings))
        starts = [mask, *(mask & (self.owner == j) for j in self.starting)]
        for start in starts:
            weights = start.double()
            for _ in range(self.iterations):
                moved = superpose(model, target, weights).apply(model)
                terms = 1 / (1 + (moved - target).square().sum(dim=-1) / self.d0**2)
                terms = torch.where(mask, terms, 0.0)
                best = torch.maximum(best, terms.sum(dim=1) / self.length)
                weights = terms.square()
        return best

    def _lay(self, mapping: Mapping) -> tuple[Tensor, Tensor]:
        """Model positions `(n, 3)` in the reference's order, and `(n,)` which are there."""
        positions = torch.zeros_like(self.target)
        there = torch.zeros(len(self.target), dtype=torch.bool)
        for j, i in enumerate(mapping):
            if i >= 0:
                span = slice(self.starts[j], self.starts[j + 1])
                positions[span], there[span] = self.points[i, j]
        return positions, there

    def grow(self, anchor: int, partner: int, options: Sequence[Sequence[int]]) -> Mapping:
        """Lay the model's chain `partner` on the reference's `anchor`, and map the others by where they come to lie."""
        span = slice(self.starts[anchor], self.starts[anchor + 1])
        positions, there = self.points[partner, anchor]
        laid = superpose(positions[None], self.target[span][None], there[None])
        scores = {}
        for (i, j), (points, known) in self.points.items():
            if i in options[j]:
                target = self.target[self.starts[j] : self.starts[j + 1]]
                distances = (laid.apply(points[None])[0] - target).square().sum(dim=-1)
                scores[i, j] = float((known / (1 + distances / self.d0**2)).sum())
        mapping = [-1] * len(options)
        for i, j in sorted(scores, key=lambda pair: -scores[pair]):
            if mapping[j] < 0 and i not in mapping:
                mapping[j] = i
        return tuple(mapping)
