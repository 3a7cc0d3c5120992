"""The names of the loss terms: keys of the configuration, columns of the log."""

from __future__ import annotations

STRUCTURE_TERMS = (
    "fape",
    "side_chain_fape",
    "torsion",
    "distogram",
    "plddt",
    "aligned_error",
    "violation",
    "smooth_lddt",
)
BASE_TERMS = ("base_divergence", "base_distance")
MASKED_LM = "masked_lm"
