"""Fine-tuning on structures."""

from protfold_peft.training.config import FinetuneConfig
from protfold_peft.training.finetune import FinetuneResult, finetune
from protfold_peft.training.read_config import read_config

__all__ = ["FinetuneConfig", "FinetuneResult", "finetune", "read_config"]
