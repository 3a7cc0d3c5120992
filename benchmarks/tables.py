"""The results of earlier runs as Markdown, and what they say of the aims in `docs/performance.md`.

    python benchmarks/tables.py predict.json finetune.json

The files are those that `protfold bench --out` and the scripts beside wrote with `--out`; one table is made of all.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from protfold_peft.benchmarks.table import aims, markdown


def main(paths: list[str]) -> None:
    """Print the tables of all files together."""
    rows: list[dict[str, Any]] = []
    for path in paths:
        result = json.loads(Path(path).read_text(encoding="utf-8"))
        told = result["machine"]
        print(f"{path}: {told.get('gpu', {}).get('name', told['processor'])}, {told['versions']}, {told['commit']}\n")
        rows += result["rows"]
    print("\n".join(markdown(rows)))
    print("\n".join(f"- {line}" for line in aims(rows)))


if __name__ == "__main__":
    main(sys.argv[1:])
