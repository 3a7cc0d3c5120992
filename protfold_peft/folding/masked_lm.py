"""The language model's own head, which ESMFold's weights do not hold: which residue is hidden at each place?

ESMFold's `lm_head` reads the folding trunk. To adapt ESM-2 by masked language modelling its own head is needed, taken
from the `EsmForMaskedLM` that the folding model was built on.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional
from transformers import EsmForMaskedLM

from protfold_peft.errors import CheckpointError, ConfigError
from protfold_peft.files import replacing

HEAD_FILE = "masked_lm_head.safetensors"
NEW = "new"
# Weights published in half precision differ from the others by their rounding.
_SAME = 2e-3


class MaskedLMHead(nn.Module):
    """ESM-2's head: a hidden layer, and the word embeddings as the output matrix."""

    def __init__(self, width: int, n_words: int, epsilon: float) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width)
        self.layer_norm = nn.LayerNorm(width, eps=epsilon)
        self.bias = nn.Parameter(torch.zeros(n_words))

    def forward(self, hidden: Tensor, words: Tensor) -> Tensor:
        """Logits `(b, t, v)` from the last hidden state `(b, t, c)` and the word embeddings `(v, c)`."""
        x = self.layer_norm(functional.gelu(self.dense(hidden.to(self.dense.weight.dtype))))
        return functional.linear(x, words.to(x.dtype), self.bias)


def attach_head(network: Any, source: str | os.PathLike[str] | None, folder: Path | None = None) -> None:
    """Give an `EsmFold` the head of its language model, as `network.masked_lm_head`.

    Args:
        network: The folding model.
        source: Hub id or folder of an `EsmForMaskedLM` with the same language model, or `new` for an untrained head;
            None: the file of that name in `folder`.
        folder: Of the folding model; None if it has none.

    Raises:
        ConfigError: There is no head, and none is asked for.
        CheckpointError: The head cannot be read, or belongs to another language model.
    """
    config = network.config
    head = MaskedLMHead(config.hidden_size, config.vocab_size, config.layer_norm_eps)
    if source is None:
        if folder is None or not (folder / HEAD_FILE).is_file():
            raise ConfigError(
                "masked language modelling needs the head of the language model, which ESMFold's weights lack: set "
                "model.masked_lm_head to the matching ESM-2, e.g. facebook/esm2_t36_3B_UR50D"
            )
        _fill(head, _read(folder / HEAD_FILE), str(folder / HEAD_FILE))
    elif source != NEW:
        _fill(head, _from_language_model(network, str(source)), str(source))
    network.masked_lm_head = head.to(network.esm_s_combine.device)


def save_head(network: Any, folder: Path) -> None:
    """Write the head beside the folding model's weights."""
    state = {f"lm_head.{name}": value.contiguous() for name, value in network.masked_lm_head.state_dict().items()}
    with replacing(folder / HEAD_FILE) as temporary:
        save_file(state, temporary)
    (folder / HEAD_FILE).chmod(0o644)


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error


def _from_language_model(network: Any, source: str) -> dict[str, Tensor]:
    """The head of a language model whose embedding shows that it is this one."""
    try:
        peer: Any = EsmForMaskedLM.from_pretrained(source)
    except Exception as error:  # transformers' loaders raise many kinds
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"model.masked_lm_head={source} could not be loaded: {reason}") from error
    mine, theirs = (model.embeddings.word_embeddings.weight.detach().float().cpu() for model in (network.esm, peer.esm))
    if mine.shape != theirs.shape:
        raise CheckpointError(
            f"model.masked_lm_head={source}: its language model has width {theirs.shape[1]} and {len(theirs)} words, "
            f"the folding model's {mine.shape[1]} and {len(mine)}"
        )
    if not torch.allclose(mine, theirs, rtol=_SAME, atol=_SAME * float(theirs.abs().max())):
        raise CheckpointError(
            f"model.masked_lm_head={source}: its word embeddings are not those of the folding model; take the ESM-2 "
            "that the folding model was built on"
        )
    state = peer.state_dict()
    # The output matrix is the word embeddings; a checkpoint that has another is none of ESM-2's.
    decoder = state.get("lm_head.decoder.weight")
    if decoder is not None and not torch.equal(decoder.float(), theirs):
        raise CheckpointError(f"model.masked_lm_head={source}: its output matrix is not its word embeddings")
    return {name: value for name, value in state.items() if name.startswith("lm_head.")}


def _fill(head: MaskedLMHead, state: dict[str, Tensor], source: str) -> None:
    wanted = head.state_dict()
    given = {name: state[f"lm_head.{name}"] for name in wanted if f"lm_head.{name}" in state}
    for name, value in wanted.items():
        if name not in given or given[name].shape != value.shape:
            raise CheckpointError(f"{source}: lm_head.{name} is missing or has another shape than {tuple(value.shape)}")
    head.load_state_dict(given)
