"""Time and peak memory of the trunk's parts at ESMFold's own widths, with random weights.

    python benchmarks/trunk_kernels.py               # bf16, 128, 256, 512 residues, and 1024 forward; a minute
    python benchmarks/trunk_kernels.py --sweep       # also the tiles of triangle attention
    python benchmarks/trunk_kernels.py --json kernels.json

Milliseconds are medians between CUDA events; memory is the peak above what was held before. `stock` is transformers'
code under autocast, `torch` this package with `reference_kernels()`, `fused` its Triton kernels, `graph` these
recorded.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers.models.esm.modeling_esmfold import (
    EsmFoldTriangleMultiplicativeUpdate,
    EsmFoldTriangularSelfAttentionBlock,
)

from protfold_peft.benchmarks.models import configuration
from protfold_peft.folding import kernels
from protfold_peft.folding.attention import row_attention
from protfold_peft.folding.trunk import FoldingTrunk

HEADS, WIDTH = 4, 32
Row = dict[str, Any]


def measure(call: Callable[[], object], seconds: float = 0.25) -> tuple[float, float]:
    """Median milliseconds, and peak MiB above what was held."""
    for _ in range(2):
        call()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    times: list[float] = []
    start = time.perf_counter()
    while len(times) < 3 or (time.perf_counter() - start < seconds and len(times) < 30):
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        call()
        last.record()
        last.synchronize()
        times.append(first.elapsed_time(last))
    return statistics.median(times), (torch.cuda.max_memory_allocated() - before) / 2**20


class Table:
    """Rows as they are measured; a part that fails is reported and passed over."""

    def __init__(self) -> None:
        self.rows: list[Row] = []

    def add(self, length: int, part: str, how: str, call: Callable[[], object]) -> None:
        """Measure `call` and print its row."""
        row: Row = {"length": length, "part": part, "how": how}
        try:
            row["ms"], row["mib"] = measure(call)
            print(f"{length:>5} {part:<28} {how:<16} {row['ms']:>9.3f} ms {row['mib']:>8.0f} MiB", flush=True)
        except Exception as error:  # one part's failure must not hide the others
            row["error"] = f"{type(error).__name__}: {error}"[:300]
            print(f"{length:>5} {part:<28} {how:<16} failed: {row['error'].splitlines()[0]}", flush=True)
        torch.cuda.empty_cache()
        self.rows.append(row)


def attention(table: Table, n: int, dtype: torch.dtype, backward: bool) -> None:
    """Triangle attention alone."""
    from protfold_peft.folding.kernels.choose import cuequivariance_attention
    from protfold_peft.folding.kernels.triton_attention_backward import triangle_attention

    x = torch.randn(1, n, n, 3, HEADS, WIDTH, device="cuda", dtype=dtype)
    bias = torch.randn(1, HEADS, n, n, device="cuda", dtype=dtype)
    grad = torch.randn(1, n, n, HEADS, WIDTH, device="cuda", dtype=dtype)
    scale = WIDTH**-0.5

    def heads(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(x.select(3, slot).transpose(2, 3) for slot in range(3))

    def plain(x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        q, k, v = heads(x)
        return (((q * scale) @ k.transpose(-1, -2) + bias[:, None]).softmax(-1) @ v).transpose(2, 3)

    ways: dict[str, Callable[..., torch.Tensor]] = {"plain": plain} if n <= 512 else {}
    ways |= {
        "torch": lambda x, bias: row_attention(x, bias, scale),
        "triton": lambda x, bias: triangle_attention(x, bias, scale),
    }
    if kernels.has_cuequivariance():
        ways["cuequivariance"] = lambda x, bias: cuequivariance_attention(x, bias, scale)
    for how, way in ways.items():
        with torch.no_grad():
            table.add(n, "attention forward", how, lambda way=way: way(x, bias))  # type: ignore[misc]
        if backward:
            leaves = (x.clone().requires_grad_(True), bias.clone().requires_grad_(True))
            try:
                out = way(*leaves)
            except Exception as error:
                print(f"{n:>5} attention backward {how}: {error}", file=sys.stderr)
                continue
            table.add(
                n, "attention backward", how,
                lambda out=out, leaves=leaves: torch.autograd.grad(out, leaves, grad, retain_graph=True),  # type: ignore[misc]
            )  # fmt: skip


def sweep(n: int, dtype: torch.dtype) -> list[Row]:
    """Triangle attention by tile, forward and backward."""
    from protfold_peft.folding.kernels import triton_attention as triton_kernels
    from protfold_peft.folding.kernels.triton_attention_backward import attend_rows_backward

    x = torch.randn(1, n, n, 3, HEADS, WIDTH, device="cuda", dtype=dtype)
    bias = torch.randn(1, HEADS, n, n, device="cuda", dtype=dtype)
    scale, rows, chosen = WIDTH**-0.5, [], dict(triton_kernels.TILES)
    out, sums = triton_kernels.attend_rows(x, bias, scale, save=True)
    assert sums is not None
    forward = [(128, 64, 8, 3), (128, 64, 8, 2), (128, 64, 4, 3), (64, 64, 4, 3), (64, 64, 4, 2), (64, 128, 4, 2)]
    forward += [(128, 32, 4, 3), (64, 32, 4, 3), (128, 128, 8, 2)]
    backward = [(64, 64, 4, 2), (64, 64, 4, 1), (64, 64, 8, 2), (128, 64, 8, 2), (64, 128, 8, 2), (64, 32, 4, 2)]
    for kind, tiles in (("forward", forward), ("backward", backward)):
        for tile in tiles:
            triton_kernels.TILES[kind] = triton_kernels.Tile(*tile)
            try:
                if kind == "forward":
                    ms, _ = measure(lambda: triton_kernels.attend_rows(x, bias, scale), 0.1)
                else:
                    ms, _ = measure(lambda: attend_rows_backward(x, bias, out, sums, out, scale), 0.1)
                print(f"{n:>5} attention {kind:<9} tile {tile}: {ms:.3f} ms", flush=True)
                rows.append({"length": n, "part": f"attention {kind}", "tile": tile, "ms": ms})
            except Exception as error:
                print(f"{n:>5} attention {kind:<9} tile {tile}: {str(error).splitlines()[0]}", flush=True)
        triton_kernels.TILES.update(chosen)
    return rows


def parts(table: Table, n: int, trunk: FoldingTrunk, dtype: torch.dtype, stock: Any) -> None:
    """Triangle multiplication, transition and a whole block, forward."""
    from protfold_peft.folding.kernels import fast_block, triton_pair

    block: Any = trunk.blocks[0]
    c_s, c_z = trunk.config.sequence_state_dim, trunk.config.pairwise_state_dim
    s = torch.randn(1, n, c_s, device="cuda")
    z = torch.randn(1, n, n, c_z, device="cuda")
    mask = torch.ones(1, n, device="cuda")
    pair_mask = mask[:, :, None] * mask[:, None]
    packed = fast_block.PackedBlock(block, dtype)
    rows = 64 if n > 512 else n

    def chunked_transition() -> None:
        for start in range(0, n, rows):
            z[:, start : start + rows] += block.mlp_pair.mlp(z[:, start : start + rows])

    with torch.no_grad(), torch.autocast("cuda", dtype=dtype):
        multiply: Any = EsmFoldTriangleMultiplicativeUpdate.forward
        if n <= 512:
            table.add(n, "multiplication forward", "stock", lambda: z + multiply(stock.tri_mul_out, z, pair_mask))
        with kernels.using(reference=True):
            table.add(n, "multiplication forward", "torch", lambda: block.tri_mul_out.add_update_(z, pair_mask, rows))
            table.add(n, "attention update forward", "torch", lambda: block.tri_att_end.add_update_(z, mask, rows))
            table.add(n, "transition forward", "torch", chunked_transition)
            table.add(n, "block forward", "torch", lambda: block(s, z, mask))
        if n <= 512:
            table.add(n, "block forward", "stock", lambda: stock(s, z, mask=mask))
    with torch.no_grad():
        table.add(
            n, "multiplication forward", "fused",
            lambda: triton_pair.multiply_(z, mask, packed.multiplications[0], outgoing=True),
        )  # fmt: skip
        table.add(
            n, "attention update forward", "fused",
            lambda: fast_block._attend_(z, mask, packed.attentions[1], starting=False),
        )  # fmt: skip
        norm, first, second = packed.pair_mlp
        table.add(n, "transition forward", "fused", lambda: triton_pair.transition_(z, *norm, *first, *second))
        table.add(n, "block forward", "fused", lambda: fast_block.update(s, z, mask, packed))


def training(table: Table, n: int, trunk: FoldingTrunk, dtype: torch.dtype, stock: Any) -> None:
    """A block forward and backward with frozen weights, nothing checkpointed."""
    s = torch.randn(1, n, trunk.config.sequence_state_dim, device="cuda", requires_grad=True)
    z = torch.randn(1, n, n, trunk.config.pairwise_state_dim, device="cuda", requires_grad=True)
    mask = torch.ones(1, n, device="cuda")

    def step(block: Any) -> None:
        with torch.autocast("cuda", dtype=dtype):
            new_s, new_z = block(s, z, mask=mask)
        torch.autograd.grad((new_s, new_z), (s, z), (s.detach(), z.detach()))

    if n <= 384:
        table.add(n, "block forward + backward", "stock", lambda: step(stock))
    with kernels.using(reference=True):
        table.add(n, "block forward + backward", "torch", lambda: step(trunk.blocks[0]))
    table.add(n, "block forward + backward", "fused", lambda: step(trunk.blocks[0]))


def passes(table: Table, n: int, trunk: FoldingTrunk) -> None:
    """A whole pass: all blocks and the structure module; and the latter alone."""
    s = torch.randn(1, n, trunk.config.sequence_state_dim, device="cuda")
    z = torch.randn(1, n, n, trunk.config.pairwise_state_dim, device="cuda")
    mask = torch.ones(1, n, device="cuda")
    aatype = torch.randint(0, 20, (1, n), device="cuda")

    def run(**changes: object) -> None:
        with kernels.using(**changes):
            if trunk._load_kernels(s):
                new_s, new_z, placed = trunk._run_kernels(s, z.clone(), aatype, mask, graphs=kernels.settings().graphs)
            else:
                (new_s, new_z), placed = trunk._blocks(s, z.clone(), mask), {}
            placed or trunk._place(new_s, new_z, aatype, mask)

    with torch.no_grad():
        table.add(n, "blocks and structure module", "torch", lambda: run(reference=True))
        table.add(n, "blocks and structure module", "fused", lambda: run(graphs=False))
        if n <= 512:
            table.add(n, "blocks and structure module", "graph", lambda: run(graphs=True))
            if trunk._graphs is not None:
                trunk._graphs.clear()
        inputs = {"single": trunk.trunk2sm_s(s), "pair": trunk.trunk2sm_z(z)}
        table.add(n, "structure module", "torch", lambda: trunk.structure_module(dict(inputs), aatype, mask))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[128, 256, 512, 1024])
    parser.add_argument("--dtype", choices=("bf16", "fp16"), default="bf16")
    parser.add_argument("--blocks", type=int, default=48)
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("this benchmark needs a CUDA device")
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[options.dtype]
    machine = {"device": torch.cuda.get_device_name(), "torch": torch.__version__}
    if importlib.util.find_spec("triton"):
        machine["triton"] = importlib.metadata.version("triton")
    print(f"# {', '.join(f'{key} {value}' for key, value in machine.items())}, {options.dtype}", flush=True)
    trunk_config = configuration("full").esmfold_config.trunk
    trunk_config.num_blocks = options.blocks
    with torch.device("cuda"):
        trunk = FoldingTrunk(trunk_config).eval().requires_grad_(False)
        stock: Any = EsmFoldTriangularSelfAttentionBlock(trunk_config).eval().requires_grad_(False)
        for parameter in trunk.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.3 * parameter.shape[-1] ** -0.5)
    stock.load_state_dict(trunk.blocks[0].state_dict())
    trunk.autocast_dtype = dtype
    table, swept = Table(), []
    for n in options.lengths:
        attention(table, n, dtype, backward=n <= 512)
        parts(table, n, trunk, dtype, stock)
        if n <= 512:
            training(table, n, trunk, dtype, stock)
        passes(table, n, trunk)
        if options.sweep and n in (256, 512):
            swept += sweep(n, dtype)
        if options.json:
            with options.json.open("w") as file:
                json.dump(
                    {"machine": machine, "dtype": options.dtype, "rows": table.rows, "sweep": swept}, file, indent=1
                )


if __name__ == "__main__":
    main()
