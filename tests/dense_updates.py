"""The dense update of every method, written out from its definition with `einsum` over the bare factors.

It owes nothing to the networks' own code: a site's heads, rows and columns are all it takes from there.
"""

from __future__ import annotations

import numpy as np
import torch


def dense_update(network, factors, site, options):
    """`dW (d_out, d_in)` of one site.

    Args:
        network: Name of the tensor network.
        factors: Its tensors by name.
        site: Heads, row, column and sizes.
        options: `scale` and, for Tucker, the letters of its modes.
    """
    return DENSE[network](factors, site, options["scale"], options)


def split_axis(tensor, site, letters):
    """A tensor `(model, head, j)` as the matrix `(d_out, d_in)`, for heads on either axis, spread or together."""
    order = {"output": "jhi" if site.heads.interleaved else "hji", "input": "ijh" if site.heads.interleaved else "ihj"}
    return torch.einsum(f"{letters}->{order[site.heads.axis]}", tensor).reshape(site.d_out, site.d_in)


def of_heads(factors, prefix, count):
    return next(tensor for name, tensor in factors.items() if name.startswith(prefix) and len(tensor) == count)


def cp(f, site, scale, options):
    layer, kind = f["Cl"][site.row], f["Cm"][site.column]
    if site.heads is None:
        return scale * torch.einsum("ik,ok,k,k->oi", f["A"], f["B"], layer, kind)
    heads = of_heads(f, "Ch", site.heads.count)
    return scale * split_axis(torch.einsum("ik,jk,hk,k,k->ihj", f["A"], f["B"], heads, layer, kind), site, "ihj")


def tucker2(f, site, scale, options):
    core = f["G"][options["place"][site.key]]
    return scale * torch.einsum("oa,ab,bi->oi", f["U"], core, f["V"])


def lora(f, site, scale, options):
    return scale * f["B"] @ f["A"]


def tensor_train(f, site, scale, options):
    core = torch.einsum("ab,bc->ac", f["Gl"][site.row], f["Gm"][site.column])
    if site.heads is None or not any(name.startswith("Gh") for name in f):
        return scale * torch.einsum("oa,ab,bi->oi", f["G1"], core, f["G2"])
    heads = of_heads(f, "Gh", site.heads.count)
    return scale * split_axis(torch.einsum("ja,hab,bc,ci->ihj", f["G1"], heads, core, f["G2"]), site, "ihj")


def tucker(f, site, scale, options):
    """The whole tensor, and from it the slice of the site."""
    with_heads = "U_model" in f
    letters, operands, out = "", [f["core"]], ""
    modes = ["model", "head_width", "heads"] if with_heads else ["output", "input"]
    modes += [mode for mode in ("kinds", "layers") if f"U_{mode}" in f]
    spec = []
    for place, mode in enumerate(modes):
        rank = "ABCDE"[place]
        letters += rank
        long = {"model": "i", "head_width": "j", "heads": "h", "output": "o", "input": "i", "kinds": "m", "layers": "l"}
        factor = of_heads(f, "U_heads", site.heads.count) if mode == "heads" else f[f"U_{mode}"]
        operands.append(factor)
        spec.append(long[mode] + rank)
        out += long[mode]
    tensor = scale * torch.einsum(",".join([letters, *spec]) + "->" + out, *operands)
    if "l" in out:
        tensor = tensor[..., site.row]
    if "m" in out:
        tensor = tensor[..., site.column]
    return split_axis(tensor, site, "ijh") if with_heads else tensor


def random_tucker(f, site, scale, options):
    """`mat(G x_1 U_1 diag(v_1) .. x_N U_N diag(v_N))`, one mode after the other."""
    tensor = f["G"]
    place = options["place"][site.key]
    for mode in range(tensor.dim()):
        matrix = f[f"U{mode + 1}"] @ torch.diag(f[f"v{mode + 1}"][place])
        tensor = torch.movedim(torch.tensordot(matrix, tensor, dims=([1], [mode])), 0, mode)
    return scale * tensor.reshape(site.d_out, site.d_in)


DENSE = {
    "cp": cp,
    "tucker2": tucker2,
    "lora": lora,
    "tensor_train": tensor_train,
    "tucker": tucker,
    "random_tucker": random_tucker,
}


def module_update(site, update, total):
    """`dW` of a site among the rows of its module, which may be fused: `(total, d_in)`."""
    if site.rows is None:
        return update
    rows = [
        start + offset for start in range(site.rows.start, total, site.rows.stride) for offset in range(site.rows.block)
    ]
    return torch.zeros(total, site.d_in, dtype=update.dtype).index_copy(0, torch.tensor(np.array(rows)), update)
