"""One of two processes of `adapters/test_distributed.py`: compares gradients with those of a single process.

    RANK=0 WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 MASTER_PORT=... python distributed_worker.py gradients RESULT.json

Both processes see a half of the batch. The result is, by method and road, the largest relative error of a factor's
gradient, or the text of the error that was raised.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from adapter_methods import FORMS, METHODS, make_config
from peft import get_peft_model
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint
from transformers import EsmConfig, EsmForMaskedLM

from protfold_peft.errors import ConfigError

WORLD = 2
TRAINED = (*METHODS, "tensor_train_heads")
REENTRANT, NOT_REENTRANT = {"use_reentrant": True}, {"use_reentrant": False}


def make_model(form: str, seed: int = 2, **options: Any) -> Any:
    """A small ESM-2 in float64 with an adapter, the same in every process."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}
    config = EsmConfig(
        vocab_size=33,
        position_embedding_type="rotary",
        pad_token_id=1,
        mask_token_id=32,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        **sizes,
    )
    base = EsmForMaskedLM(config).double()
    torch.manual_seed(seed)
    return get_peft_model(base, make_config(form, **options)).train()


def samples(count: int = 2 * WORLD) -> torch.Tensor:
    return torch.randint(4, 24, (count, 9), generator=torch.Generator().manual_seed(1))


def mine() -> torch.Tensor:
    return samples().chunk(WORLD)[dist.get_rank()]


def gradients(model: Any, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    """Of every trained parameter, whole, after one backward pass."""
    model.zero_grad()
    model(input_ids=tokens, labels=tokens).loss.backward()
    whole = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            grad = parameter.grad
            whole[name.removeprefix("module.")] = grad.full_tensor() if isinstance(grad, DTensor) else grad.clone()
    return whole


def error(got: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> float:
    assert set(got) == set(wanted)
    return max(((got[name] - wanted[name]).norm() / wanted[name].norm()).item() for name in wanted)


def data_parallel(form: str, checkpointing: dict[str, bool] | None = None, **options: Any) -> DistributedDataParallel:
    model = make_model(form)
    if checkpointing is not None:
        if checkpointing["use_reentrant"]:
            model.enable_input_require_grads()
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=checkpointing)
    return DistributedDataParallel(model, **options)


def fully_sharded(form: str, checkpointing: dict[str, bool] | None = None, *, by_layer: bool, factors: bool) -> Any:
    """Layers in shards of their own, or all in the root's; the factors in the root's, or on every process whole."""
    model = make_model(form)
    if checkpointing is not None:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=checkpointing)
    ignored = None if factors else set(model.base_model.tensor_factors.parameters())
    if by_layer:
        for layer in model.get_base_model().esm.encoder.layer:
            fully_shard(layer)
    return fully_shard(model, ignored_params=ignored)


def averaged(grads: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    for grad in grads.values():
        dist.all_reduce(grad)
        grad /= WORLD
    return grads


def plainly_checkpointed(form: str, use_reentrant: bool, **options: Any) -> DistributedDataParallel:
    """A layer run through torch's own function, without transformers' help."""
    model = make_model(form)
    model.enable_input_require_grads()
    for layer in model.get_base_model().esm.encoder.layer:
        plain = layer.forward

        def forward(*args: Any, plain: Any = plain, **kwargs: Any) -> Any:
            return checkpoint(lambda *inner: plain(*inner, **kwargs), *args, use_reentrant=use_reentrant)

        layer.forward = forward
    return DistributedDataParallel(model, **options)


@contextlib.contextmanager
def recorded(results: dict[str, Any], name: str) -> Iterator[None]:
    try:
        yield
    except ConfigError as refusal:
        results[name] = f"ConfigError: {refusal}"


def check_gradients() -> dict[str, dict[str, Any]]:
    results: dict[str, dict[str, Any]] = {}
    for form in TRAINED:
        own = results[form] = {}
        wanted = gradients(make_model(form), samples())
        half = gradients(make_model(form), mine())
        # Were the two halves alike, everything below would be right by chance.
        own["one half alone"] = error(half, wanted)
        own["ddp"] = error(gradients(data_parallel(form), mine()), wanted)
        model = data_parallel(form, NOT_REENTRANT)
        own["ddp checkpointed"] = error(gradients(model, mine()), wanted)
        model = data_parallel(form, REENTRANT, static_graph=True)
        own["ddp static reentrant"] = max(error(gradients(model, mine()), wanted) for _ in range(3))
        with recorded(own, "ddp reentrant"):
            own["ddp reentrant"] = error(gradients(data_parallel(form, REENTRANT), mine()), wanted)
        for by_layer in (True, False):
            for checkpointing in (None, NOT_REENTRANT):
                name = f"fsdp {'by layer' if by_layer else 'root'}{' checkpointed' if checkpointing else ''}"
                model = fully_sharded(form, checkpointing, by_layer=by_layer, factors=True)
                own[name] = error(gradients(model, mine()), wanted)
        model = fully_sharded(form, by_layer=True, factors=False)
        own["fsdp, factors whole"] = error(averaged(gradients(model, mine())), wanted)

    # What does not depend on the method.
    own = results["lorta"]
    wanted = gradients(make_model("lorta"), samples())
    own["plain checkpoint"] = error(gradients(plainly_checkpointed("lorta", False), mine()), wanted)
    model = plainly_checkpointed("lorta", True, static_graph=True)
    own["plain reentrant static"] = max(error(gradients(model, mine()), wanted) for _ in range(3))
    with recorded(own, "plain reentrant"):
        own["plain reentrant"] = error(gradients(plainly_checkpointed("lorta", True), mine()), wanted)
    # Nothing is trained: no reason to refuse, in training mode too.
    plain = make_model("lorta")
    for name, model in {
        "evaluated": data_parallel("lorta"),
        "evaluated reentrant": data_parallel("lorta", REENTRANT),
        "evaluated plain reentrant": plainly_checkpointed("lorta", True),
    }.items():
        with recorded(own, name), torch.no_grad():
            expected = plain(input_ids=mine()).logits
            own[name] = (model(input_ids=mine()).logits - expected).abs().max().item()
    # Reentrant checkpointing of the module inside, without DistributedDataParallel, is right.
    model = data_parallel("lorta", REENTRANT).module
    own["reentrant alone"] = error(gradients(model, samples()), wanted)
    return results


def train_with_trainer(folder: Path, batch: int) -> dict[str, dict[str, list[float]]]:
    """Every factor before and after three steps of the Trainer, with `batch` samples per process."""
    from transformers import Trainer, TrainingArguments

    model = make_model("lorta").float()
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=batch,
        max_steps=3,
        learning_rate=0.05,
        optim="sgd",
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        gradient_checkpointing=True,
        gradient_checkpointing_kwargs=NOT_REENTRANT,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )
    before = factors(model)
    # As many samples as a step takes, so that their order does not matter.
    data = [{"input_ids": row, "labels": row} for row in samples()]
    Trainer(model=model, args=arguments, train_dataset=data).train()
    return {"before": before, "after": factors(model)}


def factors(model: Any) -> dict[str, list[float]]:
    return {n: p.detach().flatten().tolist() for n, p in model.named_parameters() if p.requires_grad}


def main() -> None:
    work, path = sys.argv[1], Path(sys.argv[2])
    torch.set_num_threads(1)
    results: Any
    if work == "gradients":
        dist.init_process_group("gloo")
        results = check_gradients()
    else:
        results = train_with_trainer(path.parent, batch=2 * WORLD // int(os.environ.get("WORLD_SIZE", "1")))
    path.with_suffix(f".{os.environ.get('RANK', '0')}.json").write_text(json.dumps(results))
    if dist.is_initialized():
        dist.destroy_process_group()


assert set(TRAINED) <= set(FORMS)
if __name__ == "__main__":
    main()
