"""Inference speed and peak memory of `EsmFold` beside stock transformers, on the same random weights.

    python benchmarks/predict.py                 # CPU, a medium model
    python benchmarks/predict.py --device cuda   # the full 3.5-billion-parameter architecture in bf16

What is compared with what, and how: `protfold_peft/benchmarks/prediction.py` and `suite.py`. The same, with the other
parts: `protfold bench`.
"""

from __future__ import annotations

from common import main

if __name__ == "__main__":
    main("predict", __doc__, "--lengths")
