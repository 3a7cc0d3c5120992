"""Invariant point attention without its two largest temporaries.

The point distances are the squared Euclidean distances between the points of two residues laid end to end, so one
`cdist` replaces an `n x n x heads x points x 3` difference; the attended points are one matrix product instead of a
broadcast sum of the same size.

Axis letters: `b` batch, `n` residues, `h` heads, `d` head width, `p` points, `c` channels.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from transformers.models.esm.modeling_esmfold import EsmFoldInvariantPointAttention


class InvariantPointAttention(EsmFoldInvariantPointAttention):
    """Invariant point attention (AlphaFold 2 supplement, Algorithm 22); parameter names are those it replaces."""

    def _points(self, projected: Tensor, rigids: Any) -> Tensor:
        """Points `(b, n, h, p, 3)` in the global frame from their projection `(b, n, 3 h p)`, coordinate-major."""
        local = projected.unflatten(-1, (3, -1)).transpose(-1, -2)
        return rigids[..., None].apply(local).unflatten(-2, (self.num_heads, -1))

    def forward(self, s: Tensor, z: Tensor, r: Any, mask: Tensor, **unused: Any) -> Tensor:
        """The update of the single representation.

        Args:
            s: `(b, n, c_s)` single representation.
            z: `(b, n, n, c_z)` pair representation.
            r: `(b, n)` rigid frames.
            mask: `(b, n)` float, 1 at real residues.
            unused: Offloading options of the class this replaces.

        Returns:
            `(b, n, c_s)`.
        """
        q = self.linear_q(s).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        kv = self.linear_kv(s).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        k, v = kv.split(self.hidden_dim, dim=-1)
        q_points = self._points(self.linear_q_points(s), r)
        k_points, v_points = self._points(self.linear_kv_points(s), r).split(
            [self.num_qk_points, self.num_v_points], dim=-2
        )

        scores = q @ k.transpose(-1, -2) * math.sqrt(1 / (3 * self.hidden_dim))
        scores = scores + math.sqrt(1 / 3) * self.linear_b(z).permute(0, 3, 1, 2)
        # Differences, not the expanded square: points tens of angstroms from the origin would cancel in fp32.
        distances = torch.cdist(
            q_points.transpose(1, 2).flatten(-2),
            k_points.transpose(1, 2).flatten(-2),
            compute_mode="donot_use_mm_for_euclid_dist",
        )
        weights = self.softplus(self.head_weights) * math.sqrt(1 / (3 * (self.num_qk_points * 9 / 2)))
        scores = scores - 0.5 * weights[:, None, None] * distances.square()
        scores = scores + self.config.inf * (mask[:, :, None] * mask[:, None, :] - 1)[:, None]
        attention = scores.softmax(-1)

        o = (attention @ v).transpose(1, 2).flatten(-2)
        # (b, h, n, 3 p) -> (b, n, h, p, 3), back in each residue's own frame.
        o_points = attention @ v_points.transpose(1, 2).flatten(-2)
        o_points = o_points.transpose(1, 2).unflatten(-1, (-1, 3))
        o_points = r[..., None, None].invert_apply(o_points)
        norms = (o_points.square().sum(-1) + self.config.epsilon).sqrt().flatten(-2)
        o_points = o_points.flatten(-3, -2)
        o_pair = (attention.transpose(1, 2) @ z.to(attention.dtype)).flatten(-2)
        return self.linear_out(torch.cat((o, *o_points.unbind(-1), norms, o_pair), dim=-1).to(z.dtype))
