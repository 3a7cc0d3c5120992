"""ESMFold: the differentiable model, loading and converting checkpoints, prediction, confidence, report.

The model is `model`, of `language_model`, `trunk` (its blocks in `trunk_block`, `attention` and, for GPUs, `kernels`)
and `structure_module`; `load`, `mini`, `convert` and `quantize` say where its weights come from. `encode`, `predict`
and `confidence` take a batch of sequences to predictions. `run` is all of `protfold predict`: `inputs`, `batches` and
`recovery` before the model, `writing`, `outputs`, `markers`, `summary` and `report` behind it.
"""
