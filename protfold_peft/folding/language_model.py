"""ESM-2 features for folding: the weighted sum of all hidden states, summed as they appear.

Stock code keeps the input and the output of every layer, stacks them and multiplies by the weights: 37 copies for the
published model. Only the sum is needed.

Axis letters: `b` batch, `t` tokens (start token, residues, end token), `n` residues, `c` channels, `l` layers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers.masking_utils import create_bidirectional_mask

from protfold_peft.errors import ConfigError


def weighted_hidden_states(
    esm: Any, tokens: Tensor, weights: Tensor, padding_id: int, *, gradients: bool = True
) -> Tensor:
    """The sum over layers of the hidden states of an ESM-2 encoder.

    Args:
        esm: A transformers `EsmModel` (adapters may have been injected).
        tokens: `(b, t)` token ids, padded on the right with `padding_id`.
        weights: `(l + 1,)` weights of the embeddings and of every layer's output; the last is taken after the final
            layer norm. The sum is made in their dtype.
        padding_id: The padding token.
        gradients: False records none in the encoder; the weights still get theirs.

    Returns:
        `(b, t, c)` in the dtype of `weights`.

    Raises:
        ConfigError: Something in an fp16 encoder is to be trained.
    """
    mask = tokens != padding_id
    states = _hidden_states(esm, tokens, mask)
    total = weights.new_zeros(())
    for weight in weights:
        # Pulled one by one: only the running sum outlives a layer.
        with torch.set_grad_enabled(torch.is_grad_enabled() and gradients):
            state = next(states)
        if state.requires_grad and state.dtype == torch.float16:
            raise ConfigError("the language model cannot be trained in fp16: use bf16 or fp32")
        total = total + weight * state.to(weights.dtype)
    return total


def last_hidden_state(esm: Any, tokens: Tensor, padding_id: int) -> Tensor:
    """`(b, t, c)`: the output of the last layer after its norm, from token ids `(b, t)` padded with `padding_id`."""
    state = None
    for state in _hidden_states(esm, tokens, tokens != padding_id):  # noqa: B007 (the last one is wanted)
        pass
    assert state is not None
    return state


def _hidden_states(esm: Any, tokens: Tensor, mask: Tensor) -> Iterator[Tensor]:
    """The embeddings `(b, t, c)`, then the output of every layer, the last after the final layer norm."""
    x = esm.embeddings(input_ids=tokens, attention_mask=mask)
    yield x
    attention_mask = create_bidirectional_mask(config=esm.config, inputs_embeds=x, attention_mask=mask)
    positions = None
    if esm.rotary_embeddings is not None:
        places = torch.arange(tokens.shape[1], device=tokens.device)[None]
        positions = esm.rotary_embeddings(x, places)
    last = len(esm.encoder.layer) - 1
    for i, layer in enumerate(esm.encoder.layer):
        x = layer(x, attention_mask=attention_mask, position_embeddings=positions)
        yield esm.encoder.emb_layer_norm_after(x) if i == last else x
