"""Language-model tasks on the adapter core: classification, instruction tuning, preferences, masked modelling.

Thin layers over transformers' `Trainer` and TRL; nothing here knows one adapter method from another.

`run` is a run from beginning to end and `evaluate` a later look at it; `task` is what `classify`, `sft`, `dpo` and
`mlm` have in common. `records`, `glue` and `templates` read texts, `models` and `adapter` load what is trained,
`output` and `result` are what is left. `serve` answers requests.
"""

from protfold_peft.configuration import read_config
from protfold_peft.language.config import ClassifyConfig, DpoConfig, MlmConfig, RunConfig, SftConfig
from protfold_peft.language.evaluate import evaluate
from protfold_peft.language.run import RunResult, run

__all__ = [
    "ClassifyConfig",
    "DpoConfig",
    "MlmConfig",
    "RunConfig",
    "RunResult",
    "SftConfig",
    "evaluate",
    "read_config",
    "run",
]
