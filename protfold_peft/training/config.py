"""What a fine-tuning run is asked to do: one YAML file, every key checked.

The groups mirror the file: `model`, `adapter`, `data`, `loss`, `training`, and `out` and `mode`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from protfold_peft.configuration import Group
from protfold_peft.training.terms import BASE_TERMS, MASKED_LM, STRUCTURE_TERMS


def _number(value: object) -> object:
    """YAML 1.1 reads `1e-3` (no point) as a string; people mean a number."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


Number = Annotated[float, BeforeValidator(_number), Field(allow_inf_nan=False)]
Positive = Annotated[Number, Field(gt=0)]
NotNegative = Annotated[Number, Field(ge=0)]
Fraction = Annotated[Number, Field(ge=0, le=1)]


class ModelConfig(Group):
    """The folding model that is trained, or adapted.

    Attributes:
        name: Hub id or folder of ESMFold weights; None for the built-in `protfold-mini`, and
            `protfold-mini-untrained` for its architecture with random weights.
        dtype: Number formats, `LANGUAGE_MODEL/TRUNK` or one for both; `auto` is fp32 on a CPU and bf16 on a GPU.
        device: auto, cpu, cuda or mps.
        recycles: Passes after the first, in training and evaluation, of which only the last has gradients; None: as
            many as the weights were made for (ESMFold: 3).
        gradient_checkpointing: Compute activations twice to hold fewer of them: all, or none; None: as many as
            `memory_budget` asks for, or on a GPU the memory that is free there.
        memory_budget: How much memory the run may take, as `24GB` or `22.5GiB`: of the GPU, or of the process on a CPU.
        offload: Hold the inputs of the trunk's blocks that are computed twice in main memory meanwhile.
        quantize: Hold the language model's frozen matrices in 8 or 4 bits (bitsandbytes); None: as `dtype` says.
        masked_lm_head: Where the language model's own head comes from, for `loss.masked_lm`: hub id or folder of the
            matching `EsmForMaskedLM`, or `new` for an untrained one; None: the model's own, if it has one.
        dropout: Of the language model's layers in training; None: as the weights' configuration says.
    """

    name: str | None = None
    dtype: str = "auto"
    device: str = "auto"
    recycles: Annotated[int, Field(ge=0)] | None = None
    gradient_checkpointing: bool | None = None
    memory_budget: str | None = None
    offload: bool = False
    quantize: Literal["8bit", "4bit"] | None = None
    masked_lm_head: str | None = None
    dropout: Annotated[Number, Field(ge=0, lt=1)] | None = None


class AdapterConfig(Group):
    """The adapter that is trained.

    Attributes:
        method: The tensor network, or any method of PEFT by its name (`peft_lora` for its LoRA, `dora`, `vera`, ...).
        rank: Of the shared tensor, or of each of its modes; None for methods of PEFT that have none.
        alpha: The update is scaled by `alpha / rank`; None takes `rank`, a scale of 1, or 8 if `init` is `rank_stable`.
            Not of tenslora and tera, which have a `scale` among their options.
        init: How the factors start; `authors` is the default of PEFT's own methods.
        options: Further keys of the method's configuration, as `variant` of tenslora or `heads` of tensor_train.
        target_modules: Ends of module paths.
        trunk_modules: Ends of module paths in the folding trunk that are adapted too, if `mode` is trunk.
        dropout: Probability of dropping an input of the update.
        start_from: Folder of a saved adapter that is trained on; method, rank and the rest are then that one's.
    """

    method: str = "lorta"
    rank: Annotated[int, Field(ge=1)] | None = 8
    alpha: Positive | None = None
    init: str = "authors"
    options: dict[str, Any] = Field(default={})
    target_modules: Annotated[list[str], Field(min_length=1)] = Field(
        default=["query", "key", "value", "attention.output.dense"]
    )
    trunk_modules: Annotated[list[str], Field(min_length=1)] = Field(
        default=["seq_attention.proj", "seq_attention.o_proj"]
    )
    dropout: Annotated[Number, Field(ge=0, lt=1)] = 0.0
    start_from: str | None = None


class SourceConfig(Group):
    """Structures to be judged by.

    Attributes:
        folder: Holds PDB and mmCIF files, or is a dataset of `protfold prepare`; relative to where the command runs.
        table: CSV or TSV file with a column `name`, of the files without their suffixes; None: there is none.
        where: Only the chains whose row in the table has these values, by column.
    """

    folder: str
    table: str | None = None
    where: dict[str, str] = Field(default={})


class DataConfig(Group):
    """The structures that are learnt, and those that are judged.

    Attributes:
        folder: Holds PDB and mmCIF files, or is a dataset of `protfold prepare`, of which `train` is learnt;
            relative to where the command runs. None: only `sequences` are learnt.
        table: CSV or TSV file with a column `name`, of the files without their suffixes; None: there is none.
        where: Only the chains whose row in the table has these values, by column.
        sequences: FASTA file of sequences without structures, learnt by `loss.masked_lm` alone.
        validation: Chains the run is judged by. None: the split `validation` of a prepared dataset, or, where there
            is none, the training chains themselves, which says nothing about other proteins.
        outside: Chains unlike those learnt, to see what is forgotten.
        crop_size: Longest stretch of a chain in a sample, in residues.
        min_length: Chains with fewer resolved residues are skipped.
        max_length: Longer chains are skipped; None for any length. They are evaluated in one piece.
        by_cluster: Clusters of a prepared dataset, not chains, take turns: one chain of each.
        workers: Processes that prepare samples; 0 does it in the main one.
    """

    folder: str | None = "structures"
    table: str | None = None
    where: dict[str, str] = Field(default={})
    sequences: str | None = None
    validation: SourceConfig | None = None
    outside: SourceConfig | None = None
    crop_size: Annotated[int, Field(ge=2)] = 256
    min_length: Annotated[int, Field(ge=2)] = 10
    max_length: Annotated[int, Field(ge=2)] | None = None
    by_cluster: bool = True
    workers: Annotated[int, Field(ge=0)] = 0


class LossConfig(Group):
    """The weights of the loss terms; a term of weight 0 is not computed.

    Attributes:
        fape: Backbone FAPE.
        side_chain_fape: FAPE of all atoms, symmetric ones renamed.
        torsion: Chi angles and the length of angle pairs.
        distogram: Distogram cross-entropy.
        plddt: Cross-entropy of the pLDDT head, per atom.
        aligned_error: Cross-entropy of the head for PAE and pTM.
        violation: Bond lengths, bond angles, clashes; for the end of a training.
        smooth_lddt: One less AlphaFold 3's smooth lDDT, of the CA atoms.
        masked_lm: Masked language modelling, on the language model's own head.
        base_divergence: KL divergence of the distogram from the base model's.
        base_distance: Change of CA distances from the base model's prediction, in angstrom.
        clamped_fraction: How many of the samples have FAPE clamped at 10 A.
        scale_by_length: Multiply each sample's loss by the root of its length, as AlphaFold does.
        backend: `own`, or `openfold`: FAPE, torsions and violations of that package.
    """

    fape: NotNegative = 0.5
    side_chain_fape: NotNegative = 0.5
    torsion: NotNegative = 1.0
    distogram: NotNegative = 0.3
    plddt: NotNegative = 0.01
    aligned_error: NotNegative = 0.1
    violation: NotNegative = 0.0
    smooth_lddt: NotNegative = 0.0
    masked_lm: NotNegative = 0.0
    base_divergence: NotNegative = 0.0
    base_distance: NotNegative = 0.0
    clamped_fraction: Fraction = 0.9
    scale_by_length: bool = True
    backend: Literal["own", "openfold"] = "own"

    def weights(self) -> dict[str, float]:
        """Weight by name of the term, those above 0."""
        given = {name: getattr(self, name) for name in (*STRUCTURE_TERMS, *BASE_TERMS, MASKED_LM)}
        return {name: weight for name, weight in given.items() if weight}


class OptimizationConfig(Group):
    """How the parameters move, and how long.

    Attributes:
        steps: Optimizer steps.
        batch_size: Samples per step, over all processes.
        batch_tokens: Samples of similar length are taken together, as many as have this many residues in all, padding
            counted; None: `batch_size` samples of any length.
        accumulate: Parts a step's samples are split into, one after another.
        learning_rate: AdamW's, after warm-up.
        core_learning_rate: Of the cores of lotr, tenslora and tensor_train; None: `learning_rate`.
        factor_learning_rate: Of the factors of every method but tera; None: `learning_rate`.
        language_model_learning_rate: Of the language model where all weights are trained; None: `learning_rate`.
        full_parts: What `mode: full` trains, by beginnings of module paths, as `esm` for the language model alone;
            None: everything.
        warmup_steps: The learning rate rises linearly over these from 0.
        schedule: What it does afterwards: stay, or fall to 0 at the last step.
        weight_decay: AdamW's.
        max_grad_norm: Longer gradients are shortened to this; 0 shortens none.
        ema_decay: The result is a running mean of the trained parameters with this decay per step; 0: their last.
        sample_recycles: Draw every step's number of recycles from 0..`model.recycles`, as AlphaFold does.
        seed: Of everything random.
        log_every: Steps between two rows of the log.
        evaluate_every: Steps between two evaluations on the validation chains; None: only before and after.
        patience: Evaluations without a better CA lDDT after which the run stops; None: it does not.
        checkpoint_every: Steps between two checkpoints, from which `--resume` goes on; None: none.
        max_bad_steps: Steps with a NaN or infinite gradient that are skipped before the run stops.
        dead_adapter_check: Stop if a part of the adapter gets no gradient.
        trackers: Further logs: `tensorboard`, `wandb`.
    """

    steps: Annotated[int, Field(ge=1)] = 100
    batch_size: Annotated[int, Field(ge=1)] = 1
    batch_tokens: Annotated[int, Field(ge=2)] | None = None
    accumulate: Annotated[int, Field(ge=1)] = 1
    learning_rate: Positive = 1e-2
    core_learning_rate: Positive | None = None
    factor_learning_rate: Positive | None = None
    language_model_learning_rate: Positive | None = None
    full_parts: Annotated[list[str], Field(min_length=1)] | None = None
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    weight_decay: NotNegative = 0.0
    max_grad_norm: NotNegative = 1.0
    ema_decay: Annotated[Number, Field(ge=0, lt=1)] = 0.0
    sample_recycles: bool = False
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    log_every: Annotated[int, Field(ge=1)] = 1
    evaluate_every: Annotated[int, Field(ge=1)] | None = None
    patience: Annotated[int, Field(ge=1)] | None = None
    checkpoint_every: Annotated[int, Field(ge=1)] | None = 100
    max_bad_steps: Annotated[int, Field(ge=0)] = 10
    dead_adapter_check: bool = True
    trackers: list[Literal["tensorboard", "wandb"]] = Field(default=["tensorboard"])


class FinetuneConfig(Group):
    """One run.

    Attributes:
        out: Folder of the finished adapter or model.
        mode: What is trained: an `adapter` in the language model; `trunk`: in the folding trunk too; `full`: all
            weights, without an adapter.
    """

    out: str | None = None
    mode: Literal["adapter", "trunk", "full"] = "adapter"
    model: ModelConfig = ModelConfig()
    adapter: AdapterConfig = AdapterConfig()
    data: DataConfig = DataConfig()
    loss: LossConfig = LossConfig()
    training: OptimizationConfig = OptimizationConfig()
