"""Answers to a file of requests, each naming its adapter, in batches that mix adapters.

A request is a line of JSON: `prompt` (taken as it is), or `instruction` (and `input`), or `messages`; and if wanted
`id`, `adapter` (a folder; none or null: the base model) and `max_new_tokens`. Answers are written in the order of the
requests, one line of JSON each, with `text`, or `error` for a request that cannot be answered.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from transformers import AutoModelForCausalLM

from protfold_peft.adapters import TensorPeftType, collapsed, load_fitting_adapter
from protfold_peft.errors import ConfigError, DataError
from protfold_peft.files import write_text
from protfold_peft.language.config import ModelConfig
from protfold_peft.language.models import device_of, load_model, load_tokenizer, longest_input
from protfold_peft.language.records import Record
from protfold_peft.language.templates import alpaca_prompt
from protfold_peft.runtime import progress_bar

# PEFT's name for no adapter in a mixed batch.
BASE = "__base__"
# Beside ours, the method of PEFT's that can mix adapters in a batch of generation.
_CAN_MIX = (TensorPeftType.TENSOR_NETWORK.value, "LORA")


@dataclass(frozen=True)
class Request:
    """One line of the file.

    Attributes:
        number: Of the line, from 1.
        id: What the answer is to be called.
        tokens: Of the prompt.
        adapter: Folder, or None for the base model.
        max_new_tokens: Most tokens of the answer.
        error: Why it cannot be answered.
    """

    number: int
    id: Any
    tokens: list[int] = field(default_factory=list)
    adapter: str | None = None
    max_new_tokens: int = 0
    error: str | None = None


@dataclass(frozen=True)
class ServeResult:
    """How many requests were answered and how many not, by how many adapters, and in how many batches."""

    answered: int
    failed: int
    adapters: int
    batches: int
    mixed_batches: int


def serve_batch(
    requests: str | Path,
    out: str | Path,
    *,
    model: str,
    batch_size: int = 16,
    max_new_tokens: int = 64,
    device: str = "auto",
    dtype: Any = "auto",
) -> ServeResult:
    """Answer all requests of a file, always with the likeliest next token.

    Args:
        requests: The file of requests.
        out: The file of answers; it appears when all are there.
        model: Hub id or folder of the base model.
        batch_size: Requests at once.
        max_new_tokens: Of requests that do not say.
        device: auto, cpu, cuda or mps.
        dtype: auto, fp32 or bf16.

    Raises:
        DataError: The file is missing or has no request. One bad request is an error in its own answer alone.
        CheckpointError: The model, or an adapter, cannot be loaded, or does not fit.
        ConfigError: The adapters cannot share a batch.
    """
    settings = ModelConfig(name=model, device=device, dtype=dtype)
    tokenizer = load_tokenizer(settings, padding_side="left")
    found = list(_read(Path(requests), tokenizer, max_new_tokens))
    target = device_of(settings)
    network = load_model(settings, AutoModelForCausalLM, target).to(target)
    limit = longest_input(network, tokenizer)
    found = [_bounded(request, limit) for request in found]
    good = [request for request in found if request.error is None]
    folders = list(dict.fromkeys(request.adapter for request in good if request.adapter is not None))
    names = {folder: f"adapter_{number}" for number, folder in enumerate(folders)}
    network = _with_adapters(network, names)
    # Requests of like length share a batch, so that little is padded.
    order = sorted(good, key=lambda request: (request.max_new_tokens, len(request.tokens)))
    chunks = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    answers: dict[int, str] = {}
    with progress_bar("batches") as progress:
        for chunk in progress.track(chunks, description="answering"):
            answers |= answer(network.eval(), tokenizer, chunk, names)
    lines = [_line(request, answers) for request in found]
    write_text(out, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    mixed = sum(len({request.adapter for request in chunk}) > 1 for chunk in chunks)
    return ServeResult(len(good), len(found) - len(good), len(folders), len(chunks), mixed)


def _read(path: Path, tokenizer: Any, max_new_tokens: int) -> Iterator[Request]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if not text.strip():
        raise DataError(f"{path}: the file is empty: give one request a line, as JSON")
    for number, line in enumerate(text.replace("\r\n", "\n").split("\n"), start=1):
        if line.strip():
            yield _request(f"{path}, line {number}", number, line, tokenizer, max_new_tokens)


def _request(place: str, number: int, line: str, tokenizer: Any, max_new_tokens: int) -> Request:
    name: Any = number
    try:
        values = json.loads(line)
        if not isinstance(values, dict):
            raise DataError(f"{place}: a request is an object with named values")
        name = values.get("id", number)
        adapter, length = values.get("adapter"), values.get("max_new_tokens", max_new_tokens)
        if adapter is not None and not isinstance(adapter, str):
            raise DataError(f"{place}: 'adapter' is the folder of an adapter, or null")
        if adapter is not None and not (Path(adapter) / "adapter_config.json").is_file():
            raise DataError(f"{place}: '{adapter}' is not the folder of an adapter: it has no adapter_config.json")
        if type(length) is not int or length < 1:
            raise DataError(f"{place}: max_new_tokens={length!r} is no number of tokens")
        return Request(number, name, _tokens(Record(values, place), tokenizer), adapter, length)
    except json.JSONDecodeError as error:
        return Request(number, name, error=f"{place}: not valid JSON: {error.msg} (column {error.colno})")
    except DataError as error:
        return Request(number, name, error=str(error))


def _tokens(record: Record, tokenizer: Any) -> list[int]:
    """The prompt of a request, by whichever of its forms is given."""
    if "messages" in record.values:
        if tokenizer.chat_template is None:
            raise DataError(f"{record.place}: 'messages' needs a chat template, which this tokenizer does not have")
        try:
            made = tokenizer.apply_chat_template(
                record["messages"], add_generation_prompt=True, tokenize=True, return_dict=True
            )
        except Exception as error:  # of the template
            raise DataError(f"{record.place}: the chat template refuses these messages: {error}") from error
        return list(made["input_ids"])
    if "instruction" in record.values:
        prompt = alpaca_prompt(record.text("instruction"), str(record.values.get("input") or ""))
    else:
        prompt = record.text("prompt")
    return list(tokenizer(prompt).input_ids)


def _bounded(request: Request, limit: int | None) -> Request:
    needed = len(request.tokens) + request.max_new_tokens
    if request.error is None and limit is not None and needed > limit:
        message = (
            f"{len(request.tokens)} tokens and {request.max_new_tokens} new ones are more than the model's {limit}"
        )
        return Request(request.number, request.id, error=f"line {request.number}: {message}")
    return request


def _with_adapters(network: Any, names: dict[str, str]) -> Any:
    """The network with all adapters that the requests name, which have to be of one type."""
    kinds: dict[str, str] = {}
    for folder in names:
        kind = PeftConfig.from_pretrained(folder).peft_type
        kinds[getattr(kind, "value", str(kind))] = folder
        if getattr(kind, "value", str(kind)) not in _CAN_MIX:
            raise ConfigError(f"adapter '{folder}' is of type {kind}, which cannot share a batch with others")
    if len(kinds) > 1:
        one, other = list(kinds.values())[:2]
        raise ConfigError(
            f"adapters '{one}' and '{other}' are of types that cannot share a model ({', '.join(kinds)}); run them in "
            "two files"
        )
    for folder, name in names.items():
        network = load_fitting_adapter(network, folder, adapter_name=name)
    return network


@torch.inference_mode()
def answer(network: Any, tokenizer: Any, requests: Sequence[Request], names: dict[str, str]) -> dict[int, str]:
    """The answers of one batch, by the requests' numbers.

    Args:
        network: The base model, or the PEFT model with all adapters.
        tokenizer: Its tokenizer.
        requests: Of any adapters.
        names: What the adapter of a folder is called in the model.
    """
    longest = max(len(request.tokens) for request in requests)
    pad = tokenizer.pad_token_id
    tokens = torch.tensor([[pad] * (longest - len(request.tokens)) + request.tokens for request in requests])
    lengths = torch.tensor([[len(request.tokens)] for request in requests])
    mask = (torch.arange(longest) >= longest - lengths).long()
    options: dict[str, Any] = {}
    if isinstance(network, PeftModel):
        options["adapter_names"] = [BASE if each.adapter is None else names[each.adapter] for each in requests]
    device = network.device
    with collapsed(network):
        made = network.generate(
            input_ids=tokens.to(device),
            attention_mask=mask.to(device),
            max_new_tokens=max(request.max_new_tokens for request in requests),
            do_sample=False,
            pad_token_id=pad,
            **options,
        )
    answers = {}
    for request, row in zip(requests, made[:, longest:].tolist(), strict=True):
        own = row[: request.max_new_tokens]
        if tokenizer.eos_token_id in own:
            own = own[: own.index(tokenizer.eos_token_id)]
        answers[request.number] = tokenizer.decode(own, skip_special_tokens=True)
    return answers


def _line(request: Request, answers: dict[int, str]) -> dict[str, Any]:
    if request.error is not None:
        return {"id": request.id, "error": request.error}
    return {"id": request.id, "adapter": request.adapter, "text": answers[request.number]}
