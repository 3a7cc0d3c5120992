"""What a prediction run is asked to do, checked once, and how it went."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from protfold_peft.errors import ConfigError
from protfold_peft.folding.load import parse_precision
from protfold_peft.folding.markers import FORMATS
from protfold_peft.runtime import resolve_device

if TYPE_CHECKING:
    from protfold_peft.folding.summary import Row


@dataclass(frozen=True)
class RunSettings:
    """What the user asked for.

    Attributes:
        inputs: FASTA files, folders of them, or `-`.
        out: Folder of the results, made if absent.
        model: Hub id or folder; None: the built-in model.
        adapter: Folder of an adapter, None for none.
        recycles: Passes after the first, None: as the model was trained.
        max_tokens_per_batch: Padded positions of a batch; a longer record is a batch of its own.
        max_length: Longer records are invalid; None: any length.
        chunk_size: Rows worked on at once; `auto`, or None for no chunks.
        dtype: `auto`, `fp32`, `bf16`, or two as `LANGUAGE_MODEL/TRUNK`.
        device: `auto`, `cpu`, `cuda`, `cuda:N`, `mps`.
        formats: `pdb`, `cif` or both.
        num_shards: Jobs that the batches are dealt to.
        shard: This job, 0-based.
        cpu_offload: Keep parts of the model in main memory while they are not used.
        overwrite: Fold everything again.
        seed: For all random numbers, set before every batch so that results do not depend on what was skipped.
        plots: Draw pLDDT and PAE.
        report: Write the HTML report.
        writers: Processes that write results while the next batch folds; 0: it is done between batches; None: some on
            a GPU, none on a CPU.
        verbose: Send the whole log to the screen.
    """

    inputs: tuple[str, ...]
    out: Path
    model: str | None = None
    adapter: Path | None = None
    recycles: int | None = None
    max_tokens_per_batch: int = 1024
    max_length: int | None = None
    chunk_size: int | str | None = "auto"
    dtype: str = "auto"
    device: str = "auto"
    formats: tuple[str, ...] = ("pdb",)
    num_shards: int = 1
    shard: int = 0
    cpu_offload: bool = False
    overwrite: bool = False
    seed: int = 0
    plots: bool = True
    report: bool = True
    writers: int | None = None
    verbose: bool = False

    def __post_init__(self) -> None:
        if not self.formats or (unknown := [name for name in self.formats if name not in FORMATS]):
            shown = ", ".join(unknown) if self.formats else "nothing"
            raise ConfigError(f"unknown format '{shown}': use pdb, cif or pdb,cif")
        if not 0 <= self.shard < self.num_shards:
            raise ConfigError(
                f"shard {self.shard} of {self.num_shards}: shards are numbered 0 to {self.num_shards - 1}"
            )
        parse_precision(self.dtype, resolve_device(self.device))

    @property
    def tag(self) -> str:
        """What sets the summary, report and log of this shard apart; empty for a run in one piece."""
        return f".shard-{self.shard}-of-{self.num_shards}" if self.num_shards > 1 else ""


@dataclass(frozen=True)
class RunResult:
    """How a run went, in records.

    Attributes:
        folded: Folded in this run.
        skipped: Finished before, with these settings.
        failed: Folding or writing failed.
        invalid: Inputs that cannot be folded as given.
        out: Where the results are.
        records: The rows of `summary.csv` that are of this run: its records and inputs that cannot be folded.
    """

    folded: int
    skipped: int
    failed: int
    invalid: int
    out: Path
    records: tuple[Row, ...] = ()

    @property
    def summary_line(self) -> str:
        """The run in one line."""
        parts = [f"{self.folded} folded", f"{self.skipped} skipped (finished before)", f"{self.failed} failed"]
        parts += [f"{self.invalid} invalid"] if self.invalid else []
        return f"{', '.join(parts)}; results in {self.out}"

    @property
    def exit_status(self) -> int:
        """0 if everything asked for is there, 1 if something failed."""
        return 1 if self.failed or self.invalid else 0
