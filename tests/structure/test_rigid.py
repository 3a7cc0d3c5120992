"""Rigid motions against matrices, and frames where there is none."""

from __future__ import annotations

import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from protfold_peft.structure import Rigid


def random_rigid(*shape: int, seed: int = 0) -> Rigid:
    generator = torch.Generator().manual_seed(seed)
    return Rigid.from_three_points(*torch.randn(3, *shape, 3, generator=generator, dtype=torch.float64))


def as_matrix(rigid: Rigid) -> Tensor:
    matrix = torch.zeros(*rigid.shape, 4, 4, dtype=rigid.rotation.dtype)
    matrix[..., :3, :3] = rigid.rotation
    matrix[..., :3, 3] = rigid.translation
    matrix[..., 3, 3] = 1
    return matrix


def test_composition_is_matrix_product() -> None:
    one, other = random_rigid(2, 5, seed=1), random_rigid(2, 5, seed=2)
    torch.testing.assert_close(as_matrix(one.compose(other)), as_matrix(one) @ as_matrix(other))


def test_inverse() -> None:
    rigid = random_rigid(7)
    torch.testing.assert_close(as_matrix(rigid.invert()), torch.linalg.inv(as_matrix(rigid)))
    points = torch.randn(7, 3, dtype=torch.float64)
    torch.testing.assert_close(rigid.invert_apply(rigid.apply(points)), points)


def test_points_broadcast_against_frames() -> None:
    """Every point in every frame, as FAPE needs them."""
    rigid = random_rigid(4)
    points = torch.randn(9, 3, dtype=torch.float64)
    local = rigid[..., None].invert_apply(points)
    assert local.shape == (4, 9, 3)
    expected = torch.stack([(points - rigid.translation[i]) @ rigid.rotation[i] for i in range(4)])
    torch.testing.assert_close(local, expected)


def test_indexing() -> None:
    rigid = random_rigid(2, 5)
    assert rigid[0].shape == (5,)
    assert rigid[:, 1:3].shape == (2, 2)
    assert rigid[..., 0].shape == (2,)
    assert rigid[None].shape == (1, 2, 5)
    torch.testing.assert_close(rigid[1, 3].rotation, rigid.rotation[1, 3])


def test_three_points_by_hand() -> None:
    """Algorithm 21: x3 on the x axis, x1 in the xy plane at positive y."""
    x1, x2, x3 = torch.tensor([[1.0, 4.0, 0.0], [1.0, 1.0, 0.0], [3.0, 1.0, 0.0]])
    rigid = Rigid.from_three_points(x1, x2, x3)
    torch.testing.assert_close(rigid.rotation, torch.eye(3))
    torch.testing.assert_close(rigid.translation, x2)
    rigid = random_rigid(50)
    eye = torch.eye(3, dtype=torch.float64).expand(50, 3, 3)
    torch.testing.assert_close(rigid.rotation @ rigid.rotation.transpose(-1, -2), eye)
    torch.testing.assert_close(torch.linalg.det(rigid.rotation), torch.ones(50, dtype=torch.float64))


def test_frames_turn_with_the_points() -> None:
    points = torch.randn(3, 11, 3, dtype=torch.float64)
    motion = random_rigid(seed=5)
    moved = Rigid.from_three_points(*motion.apply(points))
    torch.testing.assert_close(as_matrix(moved), as_matrix(motion.compose(Rigid.from_three_points(*points))))


def test_quaternions_are_scipys() -> None:
    quaternion = torch.randn(20, 4, dtype=torch.float64)
    rigid = Rigid.from_quaternion(quaternion, torch.zeros(20, 3, dtype=torch.float64))
    expected = Rotation.from_quat(quaternion.numpy(), scalar_first=True).as_matrix()
    torch.testing.assert_close(rigid.rotation, torch.from_numpy(expected))
    zero = Rigid.from_quaternion(torch.zeros(4), torch.zeros(3))
    torch.testing.assert_close(zero.rotation, torch.eye(3))


DEGENERATE = {
    "all coincide": [[1.0, 1.0, 1.0]] * 3,
    "first two coincide": [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0], [2.0, 0.0, 0.0]],
    "last two coincide": [[2.0, 0.0, 0.0], [1.0, 1.0, 1.0], [1.0, 1.0, 1.0]],
    "on a line": [[0.0, 0.0, 0.0], [1.0, 1.0, 1.0], [2.0, 2.0, 2.0]],
    "folded back on a line": [[2.0, 2.0, 2.0], [1.0, 1.0, 1.0], [3.0, 3.0, 3.0]],
    "at the origin": [[0.0, 0.0, 0.0]] * 3,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("points", DEGENERATE.values(), ids=DEGENERATE.keys())
def test_degenerate_points_give_the_identity_and_finite_gradients(
    points: list[list[float]], dtype: torch.dtype
) -> None:
    x = torch.tensor(points, dtype=dtype, requires_grad=True)
    rigid = Rigid.from_three_points(*x)
    torch.testing.assert_close(rigid.rotation, torch.eye(3, dtype=dtype))
    (rigid.rotation.sum() + rigid.translation.sum()).backward()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()


def test_gradient() -> None:
    points = torch.randn(3, 4, 3, dtype=torch.float64, requires_grad=True)

    def f(points: Tensor) -> tuple[Tensor, Tensor]:
        rigid = Rigid.from_three_points(*points)
        return rigid.rotation, rigid.compose(rigid).invert().translation

    assert torch.autograd.gradcheck(f, (points,))


def test_identity_to_and_detach() -> None:
    rigid = Rigid.identity((2, 3), dtype=torch.float64)
    assert rigid.shape == (2, 3)
    points = torch.randn(2, 3, 3, dtype=torch.float64)
    torch.testing.assert_close(rigid.apply(points), points)
    assert rigid.to(torch.float32).rotation.dtype == torch.float32
    grown = Rigid.from_three_points(*torch.randn(3, 3, requires_grad=True))
    assert not grown.detach().rotation.requires_grad
