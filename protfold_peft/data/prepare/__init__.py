"""From structure files to a dataset: filtered, without duplicates and leaks, clustered and split.

`inputs` finds files and `sequences` full sequences for them, `records` reads and filters them, `reading` and `cache`
spare reading a file twice, `words`, `alignment` and `search` tell which sequences resemble each other, `split` makes
clusters of them, `store` and `tables` hold the dataset, `result` tells of it, `again` says what may be replaced, and
`run` is the whole of it.
"""

from protfold_peft.data.prepare.alignment import Likeness, Match, align
from protfold_peft.data.prepare.result import PrepareResult
from protfold_peft.data.prepare.run import run_prepare
from protfold_peft.data.prepare.settings import Filters, PrepareSettings
from protfold_peft.data.prepare.store import PreparedChains, is_prepared, load_prepared

__all__ = [
    "Filters",
    "Likeness",
    "Match",
    "PrepareResult",
    "PrepareSettings",
    "PreparedChains",
    "align",
    "is_prepared",
    "load_prepared",
    "run_prepare",
]
