"""Scores: tensors in, tensors out, batched, on any device. Knows nothing of models."""
