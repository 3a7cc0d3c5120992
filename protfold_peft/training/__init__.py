"""Fine-tuning on structures."""

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
