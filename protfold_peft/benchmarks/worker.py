"""One process of a benchmark: takes a job as JSON, prints every row as JSON the moment it is measured.

Started by `suite` as `python -m protfold_peft.benchmarks.worker JOB`.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch

from protfold_peft.benchmarks.finetuning import finetuning_rows
from protfold_peft.benchmarks.measuring import count_processor_time
from protfold_peft.benchmarks.prediction import prediction_rows
from protfold_peft.benchmarks.scoring import scoring_rows
from protfold_peft.runtime import quieten, resolve_device

PARTS = {"predict": prediction_rows, "finetune": finetuning_rows, "scores": scoring_rows}
# Sets rows apart from what libraries print.
MARK = "protfold-row "


def work(job: dict[str, Any]) -> None:
    """Print the rows of a job."""
    quieten()
    if job.get("threads"):
        torch.set_num_threads(job["threads"])
    if job.get("cpu_time"):
        count_processor_time()
    rows = PARTS[job["part"]](job["routes"], job["size"], resolve_device(job["device"]), job["lengths"], job["seconds"])
    for row in rows:
        print(MARK + json.dumps(row), flush=True)


if __name__ == "__main__":
    work(json.loads(sys.argv[1]))
