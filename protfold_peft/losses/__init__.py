"""Structure losses on plain tensors. Knows nothing of models."""
