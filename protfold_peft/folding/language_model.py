"""ESM-2 features for folding: the weighted sum of all hidden states, summed as they appear.

Stock code keeps the input and the output of every layer, stacks them and multiplies by the weights: 37 copies for the
published model. Only the sum is needed.

Axis letters: `b` batch, `t` tokens (start token, residues, end token), `n` residues, `c` channels, `l` layers.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.masking_utils import create_bidirectional_mask


def weighted_hidden_states(esm: Any, tokens: Tensor, weights: Tensor, padding_id: int) -> Tensor:
    """The sum over layers of the hidden states of an ESM-2 encoder.

    Args:
        esm: A transformers `EsmModel` (adapters may have been injected).
        tokens: `(b, t)` token ids, padded on the right with `padding_id`.
        weights: `(l + 1,)` weights of the embeddings and of every layer's output; the last is taken after the final
            layer norm. The sum is made in their dtype.
        padding_id: The padding token.

    Returns:
        `(b, t, c)` in the dtype of `weights`.
    """
    mask = tokens != padding_id
    x = esm.embeddings(input_ids=tokens, attention_mask=mask)
    attention_mask = create_bidirectional_mask(config=esm.config, inputs_embeds=x, attention_mask=mask)
    positions = None
    if esm.rotary_embeddings is not None:
        residues = mask.new_ones(1, tokens.shape[1]).long().cumsum(-1) - 1
        positions = esm.rotary_embeddings(x, residues)

    total = weights[0] * x.to(weights.dtype)
    last = len(esm.encoder.layer)
    for i, layer in enumerate(esm.encoder.layer, start=1):
        x = layer(x, attention_mask=attention_mask, position_embeddings=positions)
        state = esm.encoder.emb_layer_norm_after(x) if i == last else x
        total = total + weights[i] * state.to(weights.dtype)
    return total
