"""Times of `protfold adapter to-lora` and `from-lora` at the size of ESM-2 3B, and the sizes of the files.

    python benchmarks/adapter_files.py

The adapters are drawn at random from the model's structure; its 3 billion weights are never made. A random LoRA has no
tensor structure, so nothing can be near it: it is here for its time.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import torch
from peft import LoraConfig
from safetensors.torch import save_file
from transformers import EsmConfig, EsmForMaskedLM

from protfold_peft.adapters import LoRTAConfig, LoTRConfig, TensLoRAConfig, TensorTrainConfig, TeRAConfig
from protfold_peft.adapters.folders.export import export_lora
from protfold_peft.adapters.folders.fit import fit_adapter
from protfold_peft.adapters.folders.saved import adapter_tensors, write_adapter
from protfold_peft.adapters.layout import settle_layout

SIZES = {"hidden_size": 2560, "num_hidden_layers": 36, "num_attention_heads": 40, "intermediate_size": 10240}
CONFIGS = {
    "lorta": LoRTAConfig(r=8),
    "lotr": LoTRConfig(r=8),
    "tenslora": TensLoRAConfig(r=4),
    "tensor_train": TensorTrainConfig(r=8),
    "tera": TeRAConfig(r=8),
}


def make_adapter(config, base: Path, folder: Path) -> None:
    """A drawn adapter of the base's structure."""
    with torch.device("meta"):
        config.layout = settle_layout(config, EsmForMaskedLM(EsmConfig.from_pretrained(base)))
    config.base_model_name_or_path = str(base)
    networks = dict(config.build().items())
    for network in networks.values():
        network.draw_frozen()
        network.reset_parameters(config.init, zero_start=False)
    folder.mkdir()
    write_adapter(folder, config, adapter_tensors(networks, {}), "")


def make_lora(base: Path, folder: Path) -> None:
    """A random LoRA of rank 8."""
    kinds = ("self.query", "self.key", "self.value", "output.dense")
    paths = [f"base_model.model.esm.encoder.layer.{n}.attention.{kind}" for n in range(36) for kind in kinds]
    shapes = {"lora_A": (8, 2560), "lora_B": (2560, 8)}
    tensors = {f"{path}.{name}.weight": torch.randn(shape) for path in paths for name, shape in shapes.items()}
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    config = LoraConfig(r=8, target_modules=["query", "key", "value", "attention.output.dense"])
    config.base_model_name_or_path = str(base)
    config.save_pretrained(str(folder))


def size(folder: Path) -> str:
    """Of the weights."""
    return f"{(folder / 'adapter_model.safetensors').stat().st_size / 1e3:,.0f} kB"


def main() -> None:
    """Print the table."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        base = folder / "base"
        config = EsmConfig(vocab_size=33, position_embedding_type="rotary", pad_token_id=1, **SIZES)
        config.architectures = ["EsmForMaskedLM"]
        config.save_pretrained(base)
        print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
        print("method        rank  file      to-lora  LoRA file    error      from-lora  error")
        for method, adapter in CONFIGS.items():
            ours, lora = folder / method, folder / f"{method}_lora"
            make_adapter(adapter, base, ours)
            start = time.perf_counter()
            exported = export_lora(ours, lora, rank=16 if method == "tera" else None)
            seconds = time.perf_counter() - start
            line = f"{method:12}  {adapter.r:4}  {size(ours):8}  {seconds:5.1f} s  {size(lora):11}  "
            line += f"{exported.residual:.1e}  "
            if method != "tera":
                start = time.perf_counter()
                fitted = fit_adapter(lora, folder / f"{method}_again", method=method, rank=adapter.r)
                line += f"{time.perf_counter() - start:7.1f} s  {fitted.residual:.1e}"
            print(line, flush=True)
        make_lora(base, folder / "random")
        for method in ("lorta", "lotr", "tenslora", "tensor_train", "lora"):
            start = time.perf_counter()
            fitted = fit_adapter(folder / "random", folder / f"random_{method}", method=method, rank=4)
            print(
                f"random LoRA to {method} of rank 4: {time.perf_counter() - start:.1f} s, error {fitted.residual:.3f}"
            )


if __name__ == "__main__":
    main()
