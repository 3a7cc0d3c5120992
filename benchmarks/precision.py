"""What number formats do to predictions: TM-score and RMSD of CA atoms to the prediction in fp32.

    python benchmarks/precision.py                                                  # the built-in model, CPU
    python benchmarks/precision.py --device cuda --model facebook/esmfold_v1 sequences.fasta

The reference is folded on the same device in fp32 on PyTorch's own operations. pLDDT is the mean over residues.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from protfold_peft.folding.inputs import gather
from protfold_peft.folding.kernels import using
from protfold_peft.folding.load import load_model
from protfold_peft.folding.predict import predict
from protfold_peft.metrics import rmsd, tm_score
from protfold_peft.runtime import quieten

CA = 1
EXAMPLES = Path(__file__).resolve().parent.parent / "structures" / "examples.fasta"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fasta", nargs="?", type=Path, default=EXAMPLES)
    parser.add_argument("--model")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtypes", nargs="+", default=("fp32/bf16", "bf16/fp32", "bf16", "fp16/fp32", "fp16/bf16"))
    options = parser.parse_args()
    quieten()
    records = [record for record in gather([str(options.fasta)]).records if ":" not in record.sequence]

    def folded(dtype: str, *, reference: bool) -> list[tuple[torch.Tensor, float]]:
        model = load_model(options.model, device=options.device, dtype=dtype)
        with using(reference=reference):
            made = [predict(model, record.sequence, name=record.name) for record in records]
        return [(torch.as_tensor(p.structure.chains[0].atom_positions)[None, :, CA], p.mean_plddt) for p in made]

    exact = folded("fp32", reference=True)
    print(f"{len(records)} sequences, {options.model or 'protfold-mini'}, {options.device}")
    print(f"{'dtype':>10} {'TM-score: mean':>15} {'least':>7} {'RMSD: mean':>11} {'most':>7} {'pLDDT: most':>12}")
    for dtype in options.dtypes:
        scores, distances, changes = [], [], []
        for (a, plddt), (b, expected) in zip(folded(dtype, reference=False), exact):
            whole = torch.ones(a.shape[:2], dtype=torch.bool)
            scores.append(tm_score(a, b, whole).score.item())
            distances.append(rmsd(a, b, whole).score.item())
            changes.append(abs(plddt - expected))
        means = sum(scores) / len(scores), sum(distances) / len(distances)
        print(
            f"{dtype:>10} {means[0]:>15.4f} {min(scores):>7.4f} {means[1]:>10.2f}A {max(distances):>6.2f}A "
            f"{max(changes):>12.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
