"""What a comparison is asked to do: one YAML file, every key checked."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from protfold_peft.configuration import Group
from protfold_peft.training.config import FinetuneConfig, Fraction, Number, Positive

FULL = "full"
# Names that may stand in file names.
_NAME = r"^[A-Za-z0-9][A-Za-z0-9_.+-]*$"
# Overlaps D1 to D3 of the same target: it would count their residues twice.
_OVERLAPPING = "T1061-D0"

Rank = Annotated[int, Field(ge=1)]


class MethodConfig(Group):
    """One method of the sweep.

    Attributes:
        method: As `adapter.method` of `protfold finetune`, or `full`: no adapter, the weights themselves.
        ranks: The ranks; one of `ranks` and `budgets` is given, but for methods that have no rank.
        budgets: Instead of ranks: numbers of parameters; each takes the largest rank that needs no more.
        learning_rates: The grid; None: that of all methods.
        init: As `adapter.init`; None: as `finetune.adapter.init` says.
        alpha: As `adapter.alpha`.
        options: As `adapter.options`.
        dropout: As `adapter.dropout`.
        parts: Of `full`: the parts of the model that are trained; None: everything.
    """

    method: str
    ranks: Annotated[list[Rank], Field(min_length=1)] | None = None
    budgets: Annotated[list[Rank], Field(min_length=1)] | None = None
    learning_rates: Annotated[list[Positive], Field(min_length=1)] | None = None
    init: str | None = None
    alpha: Positive | None = None
    options: dict[str, Any] = Field(default={})
    dropout: Annotated[Number, Field(ge=0, lt=1)] = 0.0
    parts: Annotated[list[str], Field(min_length=1)] | None = Field(default=["esm"])

    @model_validator(mode="after")
    def _one_of(self) -> MethodConfig:
        if self.ranks is not None and self.budgets is not None:
            raise ValueError("give ranks or budgets, not both")
        if self.method == FULL and (self.ranks or self.budgets):
            raise ValueError("full has no rank: leave out ranks and budgets")
        return self


class TargetsConfig(Group):
    """Structures that the methods are judged by, and that nothing is chosen on.

    Attributes:
        folder: Of PDB or mmCIF files, one domain or chain each, as `protfold data` writes it.
        table: CSV or TSV with a column `target` or `name`, and if it has them `class`, `range`, `header`, `sequence`,
            `pdb_id`, `release_date`; None: `manifest.tsv` of the folder, if there is one.
        where: Only targets whose row in the table has these values, by column.
        sequences: FASTA of the whole targets that the domains are part of, or of the domains; None: `targets.fasta` of
            the folder, if there is one, else the sequences in the files.
        max_length: Targets whose sequence to fold is longer are left out.
        leave_out: Names of targets that are left out.
        limit: Only the first so many, by name.
    """

    folder: str
    table: str | None = None
    where: dict[str, str] = Field(default={})
    sequences: str | None = None
    max_length: Annotated[int, Field(ge=1)] | None = None
    leave_out: list[str] = Field(default=[_OVERLAPPING])
    limit: Annotated[int, Field(ge=1)] | None = None


class LeakageConfig(Group):
    """From where on a chain that is learnt, or chosen by, is taken for a relative of a target.

    Attributes:
        identity: Lowest identity of the local alignment, 0..1.
        coverage: Lowest coverage of the shorter of the two, 0..1.
        search: mmseqs, builtin, or auto: MMseqs2 where it is installed.
    """

    identity: Fraction = 0.3
    coverage: Fraction = 0.5
    search: Literal["auto", "mmseqs", "builtin"] = "auto"


class ReportConfig(Group):
    """What the report shows.

    Attributes:
        score: The score that conclusions are drawn from.
        shown: Targets whose structures are in the page, those that changed most.
        draws: Of the bootstrap.
    """

    score: Literal["lddt_ca", "lddt", "tm_score", "gdt_ts", "gdt_ha"] = "lddt_ca"
    shown: Annotated[int, Field(ge=0)] = 6
    draws: Annotated[int, Field(ge=100)] = 10_000


class ComparisonConfig(Group):
    """A sweep of methods, ranks, learning rates and seeds.

    Attributes:
        out: Folder of the results.
        finetune: The keys of `protfold finetune` that all runs share.
        methods: By the name that they have in the results.
        learning_rates: The grid of methods that have none of their own.
        seeds: Each method and rank is trained once from each.
        tuning_seeds: How many of the seeds the learning rate is chosen with.
        lora: Name of the method that the others are compared with, beside the base; None: there is none.
        targets: Sets of targets by name; conclusions are drawn from the first.
        leakage: What counts as leakage.
        report: What the report shows.
        processes: Runs at a time on this machine.
    """

    out: str | None = None
    finetune: FinetuneConfig = FinetuneConfig()
    methods: Annotated[dict[str, MethodConfig], Field(min_length=1)]
    learning_rates: Annotated[list[Positive], Field(min_length=1)] = Field(default=[1e-2])
    seeds: Annotated[list[Annotated[int, Field(ge=0, lt=2**32)]], Field(min_length=1)] = Field(default=[0, 1, 2])
    tuning_seeds: Rank = 1
    lora: str | None = None
    targets: Annotated[dict[str, TargetsConfig], Field(min_length=1)]
    leakage: LeakageConfig = LeakageConfig()
    report: ReportConfig = ReportConfig()
    processes: Rank = 1

    @field_validator("methods", "targets")
    @classmethod
    def _names(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name in value:
            if not re.match(_NAME, name) or name == "base":
                raise ValueError(f"'{name}' cannot be a name: use letters, digits and _ . + -, and not 'base'")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> ComparisonConfig:
        if self.lora is not None and self.lora not in self.methods:
            raise ValueError(f"lora: '{self.lora}' is none of the methods: {', '.join(self.methods)}")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds: one is given twice")
        if self.tuning_seeds > len(self.seeds):
            raise ValueError(f"tuning_seeds: there are only {len(self.seeds)} seeds")
        return self
