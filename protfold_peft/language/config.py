"""What a language-model run is asked to do: one YAML file, every key checked.

The groups mirror the file: `task`, `model`, `adapter`, `data`, `training`, and `out`. The four tasks share all but
`data` and a few keys of `training`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from protfold_peft.configuration import Group
from protfold_peft.training.config import Fraction, NotNegative, Number, Positive

Count = Annotated[int, Field(ge=1)]
TooLong = Literal["error", "truncate", "skip"]


class ModelConfig(Group):
    """The language model that is adapted.

    Attributes:
        name: Hub id, or folder in transformers' format. Its weights must be safetensors; code beside them never runs.
        revision: Commit, tag or branch on the hub.
        dtype: Number format of its weights: auto (fp32 on a CPU, bf16 on a GPU), fp32 or bf16. With bf16 the
            arithmetic is bf16 too, and what is trained stays fp32.
        quantize: Keep the base in 4 bits (NF4) or 8 bits, by bitsandbytes.
        device: auto, cpu, cuda or mps.
        gradient_checkpointing: Compute activations twice to hold fewer of them.
    """

    name: str
    revision: str | None = None
    dtype: Literal["auto", "fp32", "bf16"] = "auto"
    quantize: Literal["4bit", "8bit"] | None = None
    device: str = "auto"
    gradient_checkpointing: bool = False


class AdapterConfig(Group):
    """The adapter that is trained.

    Attributes:
        method: A key of `adapters.METHODS`, the name of a PEFT method (`peft_lora` for PEFT's own LoRA), or `full`:
            train all weights, and write a model instead of an adapter.
        rank: Of the method; None where it has none.
        alpha: The update is scaled by `alpha / rank`; None takes `rank`. Not of methods without one.
        init: How the factors start; None: the method's default.
        dropout: Probability of dropping an input of the update.
        target_modules: Ends of module paths, or a regular expression; None: the model's attention projections.
        modules_to_save: Modules to train in full and to save with the adapter; the head of a classifier always is.
        options: Further keys of the method's PEFT configuration.
        start: Folder of an adapter to go on from, instead of a new one; the keys above are not used then.
    """

    method: str = "lorta"
    rank: Count | None = 8
    alpha: Positive | None = None
    init: str | None = None
    dropout: Annotated[Number, Field(ge=0, lt=1)] = 0.0
    target_modules: list[str] | str | None = None
    modules_to_save: list[str] | None = None
    options: dict[str, Any] = Field(default={})
    start: str | None = None


class DataConfig(Group):
    """What all tasks say about their data.

    Attributes:
        train: File(s) .tsv, .csv, .json, .jsonl, .parquet or .txt, or `hub:OWNER/NAME[:CONFIG][:SPLIT]`.
        validation: The same, to choose the best checkpoint by and to report on.
        validation_fraction: Without `validation`: take this part of the training records instead.
        columns: Names of the columns of a .tsv or .csv file that has no line of names.
        limit: Use only the first so many records of each file.
        max_length: Most tokens of a sample.
        too_long: What is done with longer ones: error, truncate or skip.
    """

    train: str | list[str] | None = None
    validation: str | list[str] | None = None
    validation_fraction: Annotated[Number, Field(ge=0, lt=1)] = 0.0
    columns: list[str] | None = None
    limit: Count | None = None
    max_length: Annotated[int, Field(ge=2)] = 512
    too_long: TooLong = "error"


class ClassifyData(DataConfig):
    """The texts that are classified, or given a value.

    Attributes:
        glue: A GLUE task by name, which gives all keys below; its hub data is the default of `train` and `validation`.
        problem: classification or regression.
        text: Column of the text.
        text_pair: Column of a second text.
        label: Column of the class or value.
        labels: Number of classes, which then are 0, 1, ..., or their names; None: those of the training records.
        label_range: Regression: the least and the largest value there can be.
    """

    glue: Literal["cola", "sst2", "mrpc", "stsb", "qnli", "rte"] | None = None
    problem: Literal["classification", "regression"] = "classification"
    text: str = "text"
    text_pair: str | None = None
    label: str = "label"
    labels: Annotated[int, Field(ge=2)] | list[str] | None = None
    label_range: list[Number] | None = None
    max_length: Annotated[int, Field(ge=2)] = 128


class SftData(DataConfig):
    """Instructions and their answers, or plain text.

    Attributes:
        template: How prompts are written: `chat` (the tokenizer's chat template), `alpaca`, or auto: chat where there
            is a chat template.
        chat_template: File of a Jinja chat template, instead of the tokenizer's.
        separator: In a .txt file, what divides a line into prompt and completion; it stays with the prompt.
    """

    template: Literal["auto", "chat", "alpaca"] = "auto"
    chat_template: str | None = None
    separator: str | None = None


class DpoData(SftData):
    """As for instruction tuning; a record has a prompt, and a chosen and a rejected answer."""


class MlmData(DataConfig):
    """Sequences or texts of which a part is hidden.

    Attributes:
        text: Column of the text, for tables. Lines of .txt files and records of FASTA files need none.
        mask_fraction: Share of the tokens to predict.
    """

    text: str = "text"
    mask_fraction: Annotated[Number, Field(gt=0, le=1)] = 0.15


class TrainingConfig(Group):
    """How the adapter moves; defaults that differ by task are set in the tasks' own classes.

    Attributes:
        steps: Optimizer steps. One of `steps` and `epochs` is given.
        epochs: Passes over the training records.
        batch_size: Samples per step, over all processes and accumulated ones.
        accumulate: Into how many parts a process divides its share of a step.
        eval_batch_size: Samples at once in evaluation.
        learning_rate: AdamW's, after warm-up.
        head_learning_rate: Of modules trained in full, such as a classification head; None: `learning_rate`.
        core_learning_rate: Of the cores of lotr, tenslora and tensor_train; None: `learning_rate`.
        factor_learning_rate: Of the factors of our methods but tera; None: `learning_rate`.
        vector_learning_rate: Of the vectors of tera; None: `learning_rate`.
        warmup: Steps over which the learning rate rises from 0; below 1 a fraction of all steps.
        schedule: What it does afterwards.
        weight_decay: AdamW's.
        max_grad_norm: Longer gradients are shortened to this; 0 shortens none.
        seed: Of everything random.
        log_every: Steps between two rows of the log.
        eval_every: Steps between two evaluations; None: one epoch.
        keep_best: Keep the checkpoint that is best on the validation records, not the last.
        save_every: Steps between two checkpoints to resume from; None: at every evaluation where `keep_best` needs
            them, else none.
        dead_adapter_check: Stop if a part of the adapter gets no gradient.
    """

    steps: Count | None = None
    epochs: Positive | None = None
    batch_size: Count = 16
    accumulate: Count = 1
    eval_batch_size: Count = 32
    learning_rate: Positive = 1e-2
    head_learning_rate: Positive | None = None
    core_learning_rate: Positive | None = None
    factor_learning_rate: Positive | None = None
    vector_learning_rate: Positive | None = None
    warmup: NotNegative = 0.06
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    weight_decay: NotNegative = 0.0
    max_grad_norm: NotNegative = 1.0
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    log_every: Count = 10
    eval_every: Count | None = None
    keep_best: bool = True
    save_every: Count | None = None
    dead_adapter_check: bool = True

    @model_validator(mode="after")
    def _one_length(self) -> TrainingConfig:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give either steps or epochs, and set the other to null")
        return self


class SftTraining(TrainingConfig):
    """How the adapter moves in instruction tuning.

    Attributes:
        completion_only: The loss counts the answer alone, not the prompt.
    """

    completion_only: bool = True


class DpoTraining(TrainingConfig):
    """How the adapter moves in preference optimisation.

    Attributes:
        beta: How strongly the policy is held to the reference; higher holds it closer.
        loss: sigmoid (DPO), ipo or hinge, as TRL names them.
        label_smoothing: Share of the preferences taken to be the wrong way round.
    """

    beta: Positive = 0.1
    loss: Literal["sigmoid", "ipo", "hinge"] = "sigmoid"
    label_smoothing: Fraction = 0.0


class RunConfig(Group):
    """One run.

    Attributes:
        out: Folder of the finished adapter.
        task: Which task the file is for; it may be left out, as the command says it.
    """

    out: str | None = None
    model: ModelConfig
    adapter: AdapterConfig = AdapterConfig()
    data: DataConfig
    training: TrainingConfig


class ClassifyConfig(RunConfig):
    """Classification or regression of texts."""

    task: Literal["classify"] = "classify"
    data: ClassifyData


class SftConfig(RunConfig):
    """Instruction tuning of a causal language model."""

    task: Literal["sft"] = "sft"
    data: SftData
    training: SftTraining


class DpoConfig(RunConfig):
    """Direct preference optimisation of a causal language model."""

    task: Literal["dpo"] = "dpo"
    data: DpoData
    training: DpoTraining


class MlmConfig(RunConfig):
    """Masked language modelling, of proteins or of text."""

    task: Literal["mlm"] = "mlm"
    data: MlmData


CONFIGS: dict[str, type[RunConfig]] = {
    "classify": ClassifyConfig,
    "sft": SftConfig,
    "dpo": DpoConfig,
    "mlm": MlmConfig,
}
