"""What a fine-tuning run is asked to do: one YAML file, every key checked.

The groups mirror the file: `model`, `adapter`, `data`, `loss`, `training`, and `out`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


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


class _Group(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class ModelConfig(_Group):
    """The folding model that is adapted; its own weights stay as they are.

    Attributes:
        name: Hub id or folder of ESMFold weights; None for the built-in, untrained `protfold-mini`.
        dtype: Number formats, `LANGUAGE_MODEL/TRUNK` or one for both; `auto` is fp32 on a CPU and bf16/fp32 on a GPU.
        device: auto, cpu, cuda or mps.
        recycles: Passes after the first, in training and evaluation; only the last one has gradients.
        gradient_checkpointing: Compute activations twice to hold fewer of them.
    """

    name: str | None = None
    dtype: str = "auto"
    device: str = "auto"
    recycles: Annotated[int, Field(ge=0)] = 0
    gradient_checkpointing: bool = False


class AdapterConfig(_Group):
    """The adapter that is trained.

    Attributes:
        method: The tensor network.
        rank: Of the shared tensor, or of each of its modes.
        alpha: The update is scaled by `alpha / rank`; None takes `rank`, a scale of 1. Not of tenslora and tera, which
            have a `scale` among their options.
        init: How the factors start.
        options: Further keys of the method's configuration, as `variant` of tenslora or `heads` of tensor_train.
        target_modules: Ends of module paths.
        dropout: Probability of dropping an input of the update.
    """

    method: Literal["lorta", "lotr", "tenslora", "tera", "tensor_train", "lora"] = "lorta"
    rank: Annotated[int, Field(ge=1)] = 8
    alpha: Positive | None = None
    init: str = "authors"
    options: dict[str, Any] = Field(default={})
    target_modules: Annotated[list[str], Field(min_length=1)] = Field(
        default=["query", "key", "value", "attention.output.dense"]
    )
    dropout: Annotated[Number, Field(ge=0, lt=1)] = 0.0


class DataConfig(_Group):
    """The structures that are learnt.

    Attributes:
        folder: Holds PDB and mmCIF files, or is a dataset of `protfold prepare`, of which `train` is learnt;
            relative to where the command runs.
        crop_size: Longest stretch of a chain in a sample, in residues.
        min_length: Chains with fewer resolved residues are skipped.
        max_length: Longer chains are skipped; None for any length. They are evaluated in one piece.
        workers: Processes that prepare samples; 0 does it in the main one.
    """

    folder: str = "structures"
    crop_size: Annotated[int, Field(ge=2)] = 256
    min_length: Annotated[int, Field(ge=2)] = 10
    max_length: Annotated[int, Field(ge=2)] | None = None
    workers: Annotated[int, Field(ge=0)] = 0


class LossConfig(_Group):
    """The weights of the loss terms.

    Attributes:
        fape: Backbone FAPE.
        distogram: Distogram cross-entropy.
        clamped_fraction: How many of the samples have FAPE clamped at 10 A.
        scale_by_length: Multiply each sample's loss by the root of its length, as AlphaFold does.
    """

    fape: NotNegative = 1.0
    distogram: NotNegative = 0.3
    clamped_fraction: Fraction = 0.9
    scale_by_length: bool = True

    def weights(self) -> dict[str, float]:
        """Weight by name of the term."""
        return {"fape": self.fape, "distogram": self.distogram}


class OptimizationConfig(_Group):
    """How the factors move.

    Attributes:
        steps: Optimizer steps.
        batch_size: Samples per step.
        learning_rate: AdamW's, after warm-up.
        core_learning_rate: Of the cores of lotr, tenslora and tensor_train; None: `learning_rate`.
        factor_learning_rate: Of the factors of every method but tera; None: `learning_rate`.
        warmup_steps: The learning rate rises linearly over these from 0.
        schedule: What it does afterwards: stay, or fall to 0 at the last step.
        weight_decay: AdamW's.
        max_grad_norm: Longer gradients are shortened to this; 0 shortens none.
        seed: Of everything random.
        log_every: Steps between two rows of the log.
        dead_adapter_check: Stop if a part of the adapter gets no gradient.
    """

    steps: Annotated[int, Field(ge=1)] = 100
    batch_size: Annotated[int, Field(ge=1)] = 1
    learning_rate: Positive = 1e-2
    core_learning_rate: Positive | None = None
    factor_learning_rate: Positive | None = None
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    weight_decay: NotNegative = 0.0
    max_grad_norm: NotNegative = 1.0
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    log_every: Annotated[int, Field(ge=1)] = 1
    dead_adapter_check: bool = True


class FinetuneConfig(_Group):
    """One run. `out` is the folder of the finished adapter."""

    out: str | None = None
    model: ModelConfig = ModelConfig()
    adapter: AdapterConfig = AdapterConfig()
    data: DataConfig = DataConfig()
    loss: LossConfig = LossConfig()
    training: OptimizationConfig = OptimizationConfig()
