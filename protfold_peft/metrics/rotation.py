"""The proper rotation that fits one set of points to another, from their 3 x 3 correlation, by the hundred thousand.

With B = sum_i w_i y_i x_i^T (x mobile, y target, both centred) the best rotation maximises tr(R^T B). Its maximum,
lambda, is the largest root of

    P(l) = (l^2 - |B|^2)^2 - 8 l det B - 4 |cof B|^2

and, given lambda, the rotation is a closed form (Markley's FOAM):

    R = [(k + |B|^2) B + lambda cof B - B B^T B] / (k lambda - det B),   k = (lambda^2 - |B|^2) / 2

Both are a few multiplications per set, ten times cheaper than a batch of 3 x 3 singular value decompositions. The
denominator is (s1 + s2)(s2 + d s3)(s3 d + s1) for singular values s and d the sign of det B: it vanishes where the best
rotation is not unique (collinear or coincident points, mirror images of some), and those few go to the SVD.

Sources: Markley, "Attitude determination using vector observations: a fast optimal matrix algorithm", J. Astronaut.
Sci. 41 (1993) 261; Kabsch, Acta Cryst. A32 (1976) 922; the root of the same quartic as in Theobald, Acta Cryst. A61
(2005) 478 (QCP), found by Laguerre's iteration, which converges cubically and from above for real roots.

Axis letters: `s` sets of points.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# Laguerre's steps from the upper bound sqrt(3)|B|. Near a double root, that is near a rotation that is not unique,
# they gain a factor of four each instead of tripling the digits: a root whose last step was still long is not trusted.
ROOT_STEPS = 6
LAST_STEP = 1e-7
# Denominators (of B scaled to |B| = 1) below this go to the SVD: the closed form's error is about 1e-16 / its square.
DEGENERATE = 1e-4
# Pairwise sums of singular values below this fraction of the largest leave a rotation undetermined: its derivative
# along that axis is taken as zero.
UNDETERMINED = 1e-7
# Fewer sets than this are quicker by the SVD, which is one call where the closed form is two hundred.
FEW = 100


def best_rotation(b: list[Tensor]) -> list[Tensor]:
    """Nine `(s,)` float64 elements, row by row, of the best rotations for the nine elements of B.

    Structure of arrays, as the steps are elementwise and the sets are many. No gradient: see `optimal_rotation`.
    Without any correlation (B = 0) the rotation is the identity.
    """
    if len(b[0]) < FEW and b[0].device.type == "cpu":
        return list(_svd_rotation(torch.stack(b, dim=-1).unflatten(-1, (3, 3))).flatten(-2).unbind(-1))
    squares = b[0] * b[0]
    for element in b[1:]:
        squares = torch.addcmul(squares, element, element)
    norm = squares.sqrt()
    scale = norm.clamp_min(1e-150).reciprocal()
    b = [element * scale for element in b]
    b00, b01, b02, b10, b11, b12, b20, b21, b22 = b
    cofactors = [
        torch.addcmul(b11 * b22, b12, b21, value=-1),
        torch.addcmul(b12 * b20, b10, b22, value=-1),
        torch.addcmul(b10 * b21, b11, b20, value=-1),
        torch.addcmul(b02 * b21, b01, b22, value=-1),
        torch.addcmul(b00 * b22, b02, b20, value=-1),
        torch.addcmul(b01 * b20, b00, b21, value=-1),
        torch.addcmul(b01 * b12, b02, b11, value=-1),
        torch.addcmul(b02 * b10, b00, b12, value=-1),
        torch.addcmul(b00 * b11, b01, b10, value=-1),
    ]
    determinant = torch.addcmul(torch.addcmul(b00 * cofactors[0], b01, cofactors[1]), b02, cofactors[2])
    minors = cofactors[0] * cofactors[0]
    for cofactor in cofactors[1:]:
        minors = torch.addcmul(minors, cofactor, cofactor)
    root, last_step = _largest_root(determinant * -8.0, 1.0 - 4.0 * minors)

    half = torch.addcmul(torch.full_like(root, -0.5), root, root, value=0.5)
    denominator = torch.addcmul(-determinant, half, root)
    inverse = denominator.clamp_min(DEGENERATE).reciprocal()
    ahead = (half + 1.0) * inverse
    along = root * inverse
    # B B^T is symmetric.
    s00 = torch.addcmul(torch.addcmul(b00 * b00, b01, b01), b02, b02)
    s01 = torch.addcmul(torch.addcmul(b00 * b10, b01, b11), b02, b12)
    s02 = torch.addcmul(torch.addcmul(b00 * b20, b01, b21), b02, b22)
    s11 = torch.addcmul(torch.addcmul(b10 * b10, b11, b11), b12, b12)
    s12 = torch.addcmul(torch.addcmul(b10 * b20, b11, b21), b12, b22)
    s22 = torch.addcmul(torch.addcmul(b20 * b20, b21, b21), b22, b22)
    rotation = []
    for row, (p, q, r) in enumerate(((s00, s01, s02), (s01, s11, s12), (s02, s12, s22))):
        for column in range(3):
            cubic = torch.addcmul(torch.addcmul(p * b[column], q, b[3 + column]), r, b[6 + column])
            element = torch.addcmul(ahead * b[3 * row + column], along, cofactors[3 * row + column])
            rotation.append(torch.addcmul(element, cubic, inverse, value=-1))
    _replace_degenerate(rotation, b, (denominator > DEGENERATE) & (last_step < LAST_STEP))
    return rotation


def _largest_root(linear: Tensor, constant: Tensor) -> tuple[Tensor, Tensor]:
    """`(s,)` the largest root of l^4 - 2 l^2 + linear l + constant, all of whose roots are real, and the last step."""
    root = step = torch.full_like(linear, 3.0**0.5)
    for _ in range(ROOT_STEPS):
        square = root * root
        second = square * 12.0 - 4.0
        first = torch.addcmul(linear, square * 4.0 - 4.0, root)
        value = torch.addcmul(torch.addcmul(constant, linear, root), square, square - 2.0)
        spread = torch.addcmul(first * first * 9.0, value, second, value=-12.0).clamp_min_(0.0).sqrt_()
        step = value * 4.0 / (first + spread).clamp_min_(1e-30)
        root = root - step
    return root, step.abs_()


def _replace_degenerate(rotation: list[Tensor], b: list[Tensor], trusted: Tensor) -> None:
    """Write the SVD's rotation, in place, where the closed form is not trusted."""
    places = (~trusted).nonzero().squeeze(-1)
    if not len(places):
        return
    matrices = torch.stack([element[places] for element in b], dim=-1).unflatten(-1, (3, 3))
    exact = _svd_rotation(matrices).flatten(-2).unbind(-1)
    for element, values in zip(rotation, exact, strict=True):
        element[places] = values


def _svd_rotation(b: Tensor) -> Tensor:
    """`(s, 3, 3)` proper rotations U diag(1, 1, +-1) V^T; the identity for a matrix of zeros."""
    left, _, right = torch.linalg.svd(b)
    sign = torch.ones_like(b[..., 0])
    sign[..., 2] = torch.linalg.det(left @ right).sign()
    rotation = (left * sign[..., None, :]) @ right
    nothing = (b == 0).all(-1).all(-1)
    return torch.where(nothing[..., None, None], torch.eye(3, dtype=b.dtype, device=b.device), rotation)


def optimal_rotation(b: Tensor) -> Tensor:
    """`(..., 3, 3)` proper rotations R that maximise tr(R^T B), for `(..., 3, 3)` float64 matrices B.

    Differentiable once. Where the rotation is not determined about some axis (collinear or coincident points) it is
    one of the best ones, and its derivative about that axis is taken as zero, so gradients stay finite.
    """
    rotation: Tensor = _OptimalRotation.apply(b)
    return rotation


class _OptimalRotation(torch.autograd.Function):
    """`optimal_rotation` with its gradient, which does not pass through the iterations that find it."""

    @staticmethod
    def forward(ctx: Any, b: Tensor) -> Tensor:
        """`(..., 3, 3)` rotations."""
        elements = [element.contiguous() for element in b.detach().reshape(-1, 9).unbind(-1)]
        rotation = torch.stack(best_rotation(elements), dim=-1).reshape(b.shape)
        ctx.save_for_backward(b, rotation)
        return rotation

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """`(..., 3, 3)` gradient of B from that of R, by the condition that R fulfils."""
        # R^T B stays symmetric: dR = R [w]x with K w = axial(R^T dB), K = tr(S) I - S, S = R^T B.
        b, rotation = ctx.saved_tensors
        s = rotation.mT @ b
        s = (s + s.mT) / 2
        k = s.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None] * torch.eye(3, dtype=b.dtype, device=b.device) - s
        values, vectors = torch.linalg.eigh(k)
        floor = UNDETERMINED * values[..., -1:].abs()
        determined = (values > floor) & (values > 0)
        inverse = torch.where(determined, values, values.new_ones(())).reciprocal() * determined
        axis = _axial(rotation.mT @ gradient)
        axis = (vectors @ (inverse[..., None] * (vectors.mT @ axis[..., None]))).squeeze(-1)
        return rotation @ _cross_matrix(axis)


def _axial(m: Tensor) -> Tensor:
    """`(..., 3)` the vector v with [v]x = M - M^T."""
    return torch.stack([m[..., 2, 1] - m[..., 1, 2], m[..., 0, 2] - m[..., 2, 0], m[..., 1, 0] - m[..., 0, 1]], -1)


def _cross_matrix(v: Tensor) -> Tensor:
    """`(..., 3, 3)` the matrix [v]x of the cross product with v."""
    x, y, z = v.unbind(-1)
    o = torch.zeros_like(x)
    return torch.stack([o, -z, y, z, o, -x, -y, x, o], dim=-1).unflatten(-1, (3, 3))
