"""Confidence from the model's heads: pLDDT, PAE, pTM and ipTM, per sequence and without its padding.

Axis letters: `b` batch, `n` residues, `k` bins, `c` chains.

Sources: pTM and PAE, AlphaFold 2 supplement 1.9.7; ipTM, AlphaFold-Multimer (Evans et al. 2021), section 2.3.
"""

from __future__ import annotations

import torch
from torch import Tensor

MAX_PAE_BIN = 31.0


def plddt(logits: Tensor) -> Tensor:
    """Expected pLDDT, 0..100, of logits `(..., k)` over equal bins of 0..1."""
    k = logits.shape[-1]
    centres = (torch.arange(k, device=logits.device, dtype=logits.dtype) + 0.5) * (100 / k)
    return logits.softmax(-1) @ centres


def pae_bin_centres(n_bins: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None) -> Tensor:
    """`(k,)` centres, in angstrom, of the aligned-error bins: edges from 0 to 31, the last bin open."""
    edges = torch.linspace(0, MAX_PAE_BIN, n_bins - 1, device=device, dtype=dtype)
    step = edges[1] - edges[0]
    centres = edges + step / 2
    return torch.cat([centres, centres[-1:] + step])


def predicted_aligned_error(logits: Tensor) -> Tensor:
    """Expected aligned error in angstrom, `(..., n, n)` from logits `(..., n, n, k)`; row = residue aligned on."""
    centres = pae_bin_centres(logits.shape[-1], device=logits.device, dtype=logits.dtype)
    return logits.softmax(-1) @ centres


def tm_terms(logits: Tensor, length: int) -> Tensor:
    """Expected TM-score term of every residue pair.

    Args:
        logits: `(n, n, k)` aligned-error logits of one sequence.
        length: Residues that set `d0` (linkers and padding not counted); at least 19 is used.

    Returns:
        `(n, n)`, 0..1.
    """
    d0 = 1.24 * (max(length, 19) - 15) ** (1 / 3) - 1.8
    centres = pae_bin_centres(logits.shape[-1], device=logits.device, dtype=logits.dtype)
    return logits.softmax(-1) @ (1 / (1 + (centres / d0).square()))


def ptm(logits: Tensor, mask: Tensor) -> Tensor:
    """Predicted TM-score of every sequence of a batch.

    Args:
        logits: `(b, n, n, k)`.
        mask: `(b, n)`, nonzero at the residues that count. `d0` comes from each sequence's own count, and neither
            padding nor linkers enter the mean or the choice of the residue aligned on.

    Returns:
        `(b,)`, 0..1.
    """
    scores = []
    for sample, keep in zip(logits, mask.bool()):
        terms = tm_terms(sample[keep][:, keep], int(keep.sum()))
        scores.append(terms.mean(-1).max())
    return torch.stack(scores)


def interface_ptm(logits: Tensor, chain_index: Tensor) -> tuple[Tensor, Tensor]:
    """Interface pTM of a complex.

    Args:
        logits: `(n, n, k)` aligned-error logits, linkers removed.
        chain_index: `(n,)` chain of every residue, 0..c-1; at least two chains.

    Returns:
        ipTM (a scalar): the best residue's mean over the residues of all other chains. And `(c, c)`: the same for
        residues aligned on in one chain (row) and scored in another (column), symmetrised by the larger of the two;
        on the diagonal the pTM of the chain within the complex. `d0` is that of the whole complex for ipTM and for
        the pairs the two chains' joint length, and the chain's length on the diagonal.
    """
    n = len(chain_index)
    terms = tm_terms(logits, n)
    other = chain_index[:, None] != chain_index[None, :]
    iptm = ((terms * other).sum(-1) / other.sum(-1)).max()
    n_chains = int(chain_index.max()) + 1
    pairs = terms.new_zeros(n_chains, n_chains)
    members = [chain_index == i for i in range(n_chains)]
    for i, rows in enumerate(members):
        for j, columns in enumerate(members):
            length = int(rows.sum()) if i == j else int(rows.sum() + columns.sum())
            pairs[i, j] = tm_terms(logits[rows][:, columns], length).mean(-1).max()
    return iptm, torch.maximum(pairs, pairs.T)
