"""Fine-tuning on structures.

`finetune` is a run from beginning to end: `config` says what is asked, `chains` what is learnt and judged, `setup`
makes the model ready and `trainer_setup` the Trainer (`trainer`, with `callbacks` beside it and the loss of
`objective`); `memory` fits a step to the memory. `evaluate` judges before and after, `checkpoints` and `predictions`
are for going on after an interruption, `results`, `output` and `report` are what is left. `suggestion` is
`protfold init`.
"""

import os
from collections.abc import Iterable

from protfold_peft import configuration
from protfold_peft.training.config import FinetuneConfig
from protfold_peft.training.dry_run import DryRun, dry_run
from protfold_peft.training.finetune import finetune
from protfold_peft.training.results import FinetuneResult


def read_config(path: str | os.PathLike[str], overrides: Iterable[str] = ()) -> FinetuneConfig:
    """Read the configuration of a run; see `configuration.read_config`."""
    return configuration.read_config(FinetuneConfig, path, overrides)


__all__ = ["DryRun", "FinetuneConfig", "FinetuneResult", "dry_run", "finetune", "read_config"]
