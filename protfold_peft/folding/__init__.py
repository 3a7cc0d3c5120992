"""ESMFold: the differentiable model, loading and converting checkpoints, prediction, confidence, report."""
