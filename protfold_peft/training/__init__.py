"""Fine-tuning on structures."""

from protfold_peft.training.config import FinetuneConfig
from protfold_peft.training.finetune import DryRun, FinetuneResult, dry_run, finetune
from protfold_peft.training.read_config import read_config

__all__ = ["DryRun", "FinetuneConfig", "FinetuneResult", "dry_run", "finetune", "read_config"]
