"""Language-model tasks on the adapter core: classification, instruction tuning, preferences, masked modelling.

Thin layers over transformers' `Trainer` and TRL; nothing here knows one adapter method from another.
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
