"""From two structures to arrays in one order: chains mapped, residues matched, everything the scores need side by side.

Axis letters: `n` residues of all chains scored against, in the reference's order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from protfold_peft.errors import StructureError
from protfold_peft.metrics.chain_mapping import MAX_EXACT, map_chains
from protfold_peft.metrics.correspondence import ALIGNMENT, NUMBER, Correspondence, correspond
from protfold_peft.structure.residues import ATOM_INDEX
from protfold_peft.structure.types import Chain, Structure

CHAIN, COMPLEX, PART = "chain", "complex", "part"
_CA = ATOM_INDEX["CA"]

# A forced match by number with fewer equal names than this is worth a word.
_SUSPICIOUS_IDENTITY = 0.5


@dataclass(frozen=True, eq=False)
class Link:
    """A chain of the reference and the chain of the model that stands for it.

    Attributes:
        reference: The chain scored against.
        model: Its partner, None where the model has none.
        residues: Which residues match, None without a partner.
        place: Number of the partner in the model, -1 without one.
    """

    reference: Chain
    model: Chain | None = None
    residues: Correspondence | None = None
    place: int = -1


@dataclass(frozen=True, eq=False)
class Matched:
    """A model beside its reference, ready to be scored.

    Attributes:
        model: The structure scored.
        reference: The structure scored against.
        level: `complex`; `chain` for one chain against one chain; `part` for that of a complex scored before.
        links: The chains scored against, in file order, and their partners.
        reference_positions: `(n, 37, 3)` float64 angstrom.
        reference_mask: `(n, 37)` bool.
        model_positions: `(n, 37, 3)` of the matched residues, 0 where there is none.
        model_mask: `(n, 37)` bool.
        plddt: `(n,)` B-factor of the model's CA, NaN where there is none.
        model_chains: The model's chains that are scored, with or without a partner.
        notes: Sentences on what was decided.
    """

    model: Structure
    reference: Structure
    level: str
    links: tuple[Link, ...]
    reference_positions: np.ndarray
    reference_mask: np.ndarray
    model_positions: np.ndarray
    model_mask: np.ndarray
    plddt: np.ndarray
    model_chains: tuple[Chain, ...]
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.reference_mask)

    @property
    def sequence(self) -> str:
        """`n` letters of the reference."""
        return "".join(link.reference.sequence for link in self.links)

    @property
    def n_reference(self) -> int:
        """Residues of the reference that have CA: the length the scores are normalised by."""
        return int(self.reference_mask[:, _CA].sum())

    @property
    def n_model(self) -> int:
        """Residues with CA of the model's chains that are scored."""
        return sum(int(chain.atom_mask[:, _CA].sum()) for chain in self.model_chains)

    @property
    def n_matched(self) -> int:
        """Residues whose CA is in both."""
        return int((self.reference_mask & self.model_mask)[:, _CA].sum())

    @property
    def matched_by(self) -> str:
        """`number` if every chain was matched so, else `alignment`."""
        ways = {link.residues.matched_by for link in self.links if link.residues is not None}
        return NUMBER if ways == {NUMBER} else ALIGNMENT

    @property
    def identity(self) -> float:
        """Fraction of the matched residues with the same name, over all chains; NaN where no names can be compared."""
        found = [link.residues for link in self.links if link.residues is not None]
        weights = [each.n_matched for each in found]
        return float(np.average([each.identity for each in found], weights=weights))

    @property
    def chain_lengths(self) -> list[int]:
        """Residues of every chain scored against."""
        return [len(link.reference) for link in self.links]


def match_structures(
    model: Structure,
    reference: Structure,
    *,
    way: str,
    min_identity: float,
    whole_complex: bool = False,
    by_chain: bool = False,
) -> list[Matched]:
    """Match a model to its reference.

    Where both have several chains the complexes are compared, all chains of the reference counting. Where one of them
    has a single chain, it is compared with the chain of the other that it fits best.

    Args:
        model: The structure scored.
        reference: The structure scored against.
        way: `auto`, `number` or `alignment`.
        min_identity: Identity from which on an alignment is believed, 0..1.
        whole_complex: All chains of the reference count, even if the model has one only.
        by_chain: Every matched pair of chains of a complex follows on its own.

    Raises:
        StructureError: No chains match, or there is no CA to compare.
    """
    several = len(reference.chains) > 1 and (len(model.chains) > 1 or whole_complex)
    if len(model.chains) == len(reference.chains) == 1:
        residues = correspond(model.chains[0], reference.chains[0], way=way, min_identity=min_identity)
        link = Link(reference.chains[0], model.chains[0], residues, 0)
        return [_matched(model, reference, CHAIN, [link], model.chains)]

    mapping = map_chains(model.chains, reference.chains, way=way, min_identity=min_identity)
    by_place = {match.reference: match for match in mapping.matches}
    links = []
    for place, chain in enumerate(reference.chains):
        match = by_place.get(place)
        if match is None:
            links.append(Link(chain))
        else:
            links.append(Link(chain, model.chains[match.model], match.residues, match.model))
    matched_links = [link for link in links if link.model is not None]
    if not several:
        link = matched_links[0]
        note = f"chain {_id(link.model)} of the model scored against chain {_id(link.reference)} of the reference"
        return [_matched(model, reference, CHAIN, [link], [link.model], [note])]
    notes = []
    if not mapping.exact:
        notes.append(f"more than {MAX_EXACT} chain mappings are possible: the best one found is taken")
    left = [_id(link.reference) for link in links if link.model is None]
    if left:
        notes.append(f"chains of the reference without a partner in the model: {', '.join(left)}")
    used = {link.place for link in matched_links}
    spare = [_id(chain) for place, chain in enumerate(model.chains) if place not in used]
    if spare:
        notes.append(f"chains of the model without a partner in the reference: {', '.join(spare)}")
    whole = _matched(model, reference, COMPLEX, links, model.chains, notes)
    if not by_chain:
        return [whole]
    return [whole, *(_matched(model, reference, PART, [link], [link.model]) for link in matched_links)]


def _matched(
    model: Structure,
    reference: Structure,
    level: str,
    links: Sequence[Link],
    model_chains: Sequence[Chain | None],
    notes: Sequence[str] = (),
) -> Matched:
    """Arrays of a pair in the order of the reference's residues, chain after chain."""
    positions, masks, plddt = [], [], []
    for link in links:
        chain, residues = link.model, link.residues
        if chain is None or residues is None:
            n = len(link.reference)
            positions.append(np.zeros((n, 37, 3)))
            masks.append(np.zeros((n, 37), dtype=bool))
            plddt.append(np.full(n, np.nan))
            continue
        rows = residues.model_index
        mask = chain.atom_mask[rows] & (rows >= 0)[:, None]
        positions.append(np.where(mask[..., None], chain.atom_positions[rows], 0.0))
        masks.append(mask)
        plddt.append(np.where(mask[:, _CA], chain.b_factors[rows, _CA], np.nan))
    matched = Matched(
        model=model,
        reference=reference,
        level=level,
        links=tuple(links),
        reference_positions=np.concatenate([link.reference.atom_positions for link in links]),
        reference_mask=np.concatenate([link.reference.atom_mask for link in links]),
        model_positions=np.concatenate(positions),
        model_mask=np.concatenate(masks),
        plddt=np.concatenate(plddt),
        model_chains=tuple(chain for chain in model_chains if chain is not None),
        notes=(*notes, *_suspicions(links)),
    )
    if not matched.n_reference:
        raise StructureError(f"{reference.name}: the reference has no CA atom; there is nothing to score against")
    if not matched.n_matched:
        raise StructureError(f"{model.name}: no matched residue has CA in the model and in the reference")
    return matched


def _suspicions(links: Sequence[Link]) -> list[str]:
    return [
        f"chain {_id(link.reference)}: only {100 * link.residues.identity:.0f} % of the names at matched numbers agree"
        for link in links
        if link.residues is not None and link.residues.identity < _SUSPICIOUS_IDENTITY
        if link.residues.matched_by == NUMBER
    ]


def _id(chain: Chain | None) -> str:
    return "?" if chain is None else chain.id.strip() or "''"
