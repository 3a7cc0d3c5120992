"""A fine-tuning step's time and peak memory beside the plain route, on the same random weights.

    python benchmarks/finetune.py                 # CPU, a medium model
    python benchmarks/finetune.py --device cuda   # the full 3.5-billion-parameter architecture, bf16

What is compared with what, and how: `protfold_peft/benchmarks/finetuning.py` and `suite.py`. The same, with the other
parts: `protfold bench`.
"""

from __future__ import annotations

from common import main

if __name__ == "__main__":
    main("finetune", __doc__, "--crops")
