"""Scores: tensors in, tensors out, batched, on any device. Knows nothing of models."""

from protfold_peft.metrics.lddt import Lddt, lddt

__all__ = ["Lddt", "lddt"]
