"""A configuration for fine-tuning that suits the data and the machine, with its reasons. Behind `protfold init`."""

from protfold_peft.training.suggestion.family import Family, look_at
from protfold_peft.training.suggestion.suggest import Suggestion, suggest
from protfold_peft.training.suggestion.text import config_text, split_text

__all__ = ["Family", "Suggestion", "config_text", "look_at", "split_text", "suggest"]
