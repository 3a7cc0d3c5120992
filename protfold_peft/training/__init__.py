"""Fine-tuning on structures."""

from protfold_peft.training.config import FinetuneConfig
from protfold_peft.training.dry_run import DryRun, dry_run
from protfold_peft.training.finetune import finetune
from protfold_peft.training.read_config import read_config
from protfold_peft.training.results import FinetuneResult

__all__ = ["DryRun", "FinetuneConfig", "FinetuneResult", "dry_run", "finetune", "read_config"]
