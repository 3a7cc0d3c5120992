"""Fine-tune ESMFold with tensor adapters, predict, and compare.

    >>> from protfold_peft import load_model, predict, write_pdb
    >>> prediction = predict(load_model(), "NLYIQWLKDGGPSSGRPPPS")
    >>> write_pdb(prediction.structure, "trp_cage.pdb")

Importing the package registers its adapter methods with PEFT, so that `PeftModel.from_pretrained` reads them.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from protfold_peft.version import __version__

if TYPE_CHECKING:
    from protfold_peft.adapters import (
        DeadAdapterCallback,
        LoRTAConfig,
        LoTRConfig,
        TensLoRAConfig,
        TensorTrainConfig,
        TeRAConfig,
        adapter_param_groups,
        check_gradients,
        describe_adapters,
        load_adapter,
    )
    from protfold_peft.folding.load import LoadedModel, load_model
    from protfold_peft.folding.model import EsmFold
    from protfold_peft.folding.predict import predict, predict_batch
    from protfold_peft.folding.types import Prediction, Record
    from protfold_peft.structure import Chain, Structure, read_structure, write_mmcif, write_pdb

_EXPORTS = {
    "DeadAdapterCallback": "protfold_peft.adapters",
    "EsmFold": "protfold_peft.folding.model",
    "LoRTAConfig": "protfold_peft.adapters",
    "LoTRConfig": "protfold_peft.adapters",
    "LoadedModel": "protfold_peft.folding.load",
    "Prediction": "protfold_peft.folding.types",
    "Record": "protfold_peft.folding.types",
    "TeRAConfig": "protfold_peft.adapters",
    "TensLoRAConfig": "protfold_peft.adapters",
    "TensorTrainConfig": "protfold_peft.adapters",
    "adapter_param_groups": "protfold_peft.adapters",
    "check_gradients": "protfold_peft.adapters",
    "describe_adapters": "protfold_peft.adapters",
    "load_adapter": "protfold_peft.adapters",
    "load_model": "protfold_peft.folding.load",
    "predict": "protfold_peft.folding.predict",
    "predict_batch": "protfold_peft.folding.predict",
    "Chain": "protfold_peft.structure",
    "Structure": "protfold_peft.structure",
    "read_structure": "protfold_peft.structure",
    "write_mmcif": "protfold_peft.structure",
    "write_pdb": "protfold_peft.structure",
}

__all__ = [
    "Chain",
    "DeadAdapterCallback",
    "EsmFold",
    "LoRTAConfig",
    "LoTRConfig",
    "LoadedModel",
    "Prediction",
    "Record",
    "Structure",
    "TeRAConfig",
    "TensLoRAConfig",
    "TensorTrainConfig",
    "__version__",
    "adapter_param_groups",
    "check_gradients",
    "describe_adapters",
    "load_adapter",
    "load_model",
    "predict",
    "predict_batch",
    "read_structure",
    "write_mmcif",
    "write_pdb",
]


def __getattr__(name: str) -> Any:
    """Import public names when they are first used."""
    if name not in _EXPORTS:
        raise AttributeError(f"module 'protfold_peft' has no attribute '{name}'")
    return getattr(importlib.import_module(_EXPORTS[name]), name)


# Registration imports torch and PEFT, which takes seconds. The `protfold` program imports what each command needs, so
# that `protfold --help` answers at once; everywhere else `import protfold_peft` is enough.
if Path(sys.argv[0] if sys.argv else "").stem != "protfold":
    importlib.import_module("protfold_peft.adapters")
