"""The chains of a run: those that are learnt, those it is judged by, and those outside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from protfold_peft.data import ChainFolder, TrainingChain, joined, read_chains, read_sequences
from protfold_peft.data.prepare.split import VALIDATION
from protfold_peft.data.prepare.store import is_prepared
from protfold_peft.errors import ConfigError, StructureError
from protfold_peft.runtime import LOGGER
from protfold_peft.training.config import FinetuneConfig, SourceConfig

TRAINING_CHAINS = "the training chains (this says nothing about other proteins)"
VALIDATION_CHAINS = "validation chains"


@dataclass(frozen=True)
class RunChains:
    """What a run learns from, and what it is judged by.

    Attributes:
        train: Learnt.
        judged: Folded and scored, before, after, and between.
        judged_on: What these are: `VALIDATION_CHAINS` or `TRAINING_CHAINS`.
        outside: Folded and scored before and after, to see what is forgotten.
        skipped: What was left out, one line each.
    """

    train: ChainFolder
    judged: Sequence[TrainingChain]
    judged_on: str
    outside: Sequence[TrainingChain]
    skipped: tuple[str, ...]


def read_run_chains(config: FinetuneConfig) -> RunChains:
    """Every chain of the run; what is left out is said."""
    settings = config.data
    read = partial(read_chains, min_length=settings.min_length, max_length=settings.max_length)
    train: ChainFolder | None = None
    if settings.folder is not None:
        train = read(settings.folder, table=settings.table, where=settings.where)
    if settings.sequences is not None:
        if not config.loss.masked_lm:
            raise ConfigError("data.sequences is learnt by masked language modelling: give loss.masked_lm a weight")
        sequences = read_sequences(settings.sequences, max_length=settings.max_length)
        train = sequences if train is None else joined(train, sequences)
    if train is None:
        raise ConfigError("nothing to learn: set data.folder, or data.sequences")

    def other(source: SourceConfig) -> ChainFolder:
        return read(source.folder, table=source.table, where=source.where, split=VALIDATION)

    validation = settings.validation
    if validation is None and settings.folder is not None and is_prepared(settings.folder):
        try:
            held_out = read(settings.folder, split=VALIDATION)
        except (ConfigError, StructureError) as error:
            LOGGER.warning("%s; the training chains are judged instead", error)
            held_out = None
    else:
        held_out = None if validation is None else other(validation)
    outside = None if settings.outside is None else other(settings.outside)
    judged: Sequence[TrainingChain]
    if held_out is not None:
        judged = tuple(held_out.chains)
    else:
        judged = tuple(chain for chain in train.chains if chain.atom_mask.any())
        if not judged:
            raise ConfigError("no structure to judge by: set data.validation")
    folders = [folder for folder in (train, held_out, outside) if folder is not None]
    return RunChains(
        train=train,
        judged=judged,
        judged_on=TRAINING_CHAINS if held_out is None else VALIDATION_CHAINS,
        outside=() if outside is None else tuple(outside.chains),
        skipped=tuple(skipped.reason for folder in folders for skipped in folder.skipped),
    )
