"""The model card of a saved adapter, in the place of PEFT's template of blanks."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import peft

from protfold_peft.files import write_text
from protfold_peft.version import __version__

if TYPE_CHECKING:
    from protfold_peft.adapters.config import TensorAdapterConfig

CARD = "README.md"
# Only in a card that nobody has filled in.
_BLANK = "[More Information Needed]"


def fill_card(folder: Path, config: TensorAdapterConfig) -> None:
    """Give the card that PEFT has just put into `folder` a text, unless it has one. Its header stays."""
    path = folder / CARD
    if not path.is_file() or _BLANK not in (text := path.read_text(encoding="utf-8")):
        return
    header = re.match(r"---\n.*?\n---\n", text, flags=re.DOTALL)
    write_text(path, (header[0] if header else "") + "\n" + card_text(config))


def card_text(config: TensorAdapterConfig) -> str:
    """What the adapter is, and how it is loaded."""
    layout = config.layout or {}
    base = config.base_model_name_or_path or "the base model"
    kinds = dict.fromkeys(site.kind for site in config.sites)
    method = type(config).__name__.removesuffix("Config")
    name = base if config.base_model_name_or_path else "BASE"
    return f"""# {method} adapter of {base}

{method} of rank {config.r} on {len(config.sites)} linear maps ({", ".join(kinds)}) of a model of type
{layout.get("base", {}).get("type")}, made with protfold-peft {__version__}.

```python
import protfold_peft  # makes the method known to PEFT

from peft import PeftModel
from transformers import AutoModel  # or the class that the adapter was trained on

model = PeftModel.from_pretrained(AutoModel.from_pretrained("{name}"), "PATH/TO/THIS/FOLDER")
```

`protfold adapter info PATH/TO/THIS/FOLDER` lists its groups and factors; `protfold adapter to-lora` writes it as a
plain LoRA adapter, which needs no protfold-peft.

### Framework versions

- PEFT {peft.__version__}
"""
