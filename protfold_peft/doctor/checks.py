"""The checks of `protfold doctor`, one function each: what was looked at, how it is, and what to do about it."""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path

import torch
from huggingface_hub import constants as hub
from packaging.requirements import InvalidRequirement, Requirement

from protfold_peft.machine import GIB, Machine
from protfold_peft.pages import molstar
from protfold_peft.version import __version__

OK = "ok"
# A part that only some uses need is not installed.
MISSING = "missing"
# Something works less well than it could, or will fail in some uses.
WARNING = "warning"
# Predictions cannot be had, or cannot be trusted.
BROKEN = "broken"

_PACKAGE = "protfold-peft"
# Module, and what it is for.
_OPTIONAL_MODULES = {
    "trl": "protfold lm sft and dpo: pip install 'protfold-peft[llm]'",
    "bitsandbytes": "8- and 4-bit base models: pip install 'bitsandbytes>=0.47'",
    "triton": "fused kernels on a GPU; comes with PyTorch for CUDA",
    "cuequivariance_torch": "NVIDIA's triangle kernels: pip install cuequivariance-torch",
    "openfold": "loss.backend: openfold; docs say how to build it",
    "wandb": "training.trackers: wandb",
}
# Programs by any of their names.
_OPTIONAL_PROGRAMS = {
    ("mmseqs",): "protfold prepare --search mmseqs, for large sets",
    ("TMalign", "USalign", "US-align"): "checking TM-scores against the original program",
}
# Of the published ESMFold, which is downloaded into the cache.
_LARGE_DOWNLOAD = 15 * GIB


@dataclass(frozen=True)
class Check:
    """What one check found.

    Attributes:
        name: What was looked at.
        state: `ok`, `missing` (an optional part), `warning` or `broken`.
        found: In a few words.
        remedy: What to do; empty where nothing has to be done.
    """

    name: str
    state: str
    found: str
    remedy: str = ""


def versions() -> Iterator[Check]:
    """Python, this package and every package that it needs, against what it asks for."""
    yield Check("python", OK, f"{sys.version.split()[0]} at {sys.executable}")
    yield Check("protfold-peft", OK, f"{__version__} at {Path(__file__).resolve().parents[1]}")
    try:
        wanted = metadata.requires(_PACKAGE) or []
    except metadata.PackageNotFoundError:
        yield Check("requirements", WARNING, "the package is not installed, only on the path", "pip install .")
        return
    for line in wanted:
        try:
            requirement = Requirement(line)
        except InvalidRequirement:  # of metadata newer than `packaging`
            continue
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield _required(requirement)


def _required(requirement: Requirement) -> Check:
    remedy = f"pip install '{requirement.name}{requirement.specifier}'"
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return Check(requirement.name, BROKEN, "not installed", remedy)
    if not requirement.specifier.contains(version, prereleases=True):
        return Check(requirement.name, WARNING, f"{version}, but {requirement.specifier} is asked for", remedy)
    return Check(requirement.name, OK, version)


def devices(machine: Machine) -> Iterator[Check]:
    """Cores, memory and GPUs, and whether PyTorch can compute on them."""
    yield Check("cpu", OK, f"{machine.cores} cores, {_gib(machine.memory_bytes)}, {_gib(machine.free_bytes)} free")
    for gpu in machine.gpus:
        numbers = f"{gpu.name}, {_gib(gpu.memory_bytes)}, {_gib(gpu.free_bytes)} free"
        try:
            ones = torch.ones(8, 8, device=f"cuda:{gpu.index}")
            sound = bool((ones @ ones == 8).all())
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:150]
            yield Check(f"cuda:{gpu.index}", BROKEN, f"{numbers}: {reason}", "install a PyTorch built for this GPU")
            continue
        if sound:
            yield Check(f"cuda:{gpu.index}", OK, numbers + ("" if gpu.bf16 else ", no bfloat16: use --dtype fp32"))
        else:
            yield Check(f"cuda:{gpu.index}", BROKEN, f"{numbers}: a product of matrices is wrong", "test the GPU")
    if machine.mps:
        yield Check("mps", OK, "an Apple GPU")
    if not machine.gpus and shutil.which("nvidia-smi"):
        built = f"PyTorch {torch.__version__} is built " + (
            f"for CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
        )
        yield Check(
            "cuda", WARNING, f"nvidia-smi is here, but no device can be used; {built}", "install PyTorch for its driver"
        )


def optional() -> Iterator[Check]:
    """What only some uses need."""
    for name, use in _OPTIONAL_MODULES.items():
        if util.find_spec(name) is None:
            yield Check(name, MISSING, "not installed", f"for {use}")
        else:
            yield Check(name, OK, _version_of(name))
    for names, use in _OPTIONAL_PROGRAMS.items():
        path = next((found for name in names if (found := shutil.which(name))), None)
        yield Check(names[0], OK, path) if path else Check(names[0], MISSING, "not on the PATH", f"for {use}")
    if all(molstar()):
        yield Check("3D viewer", OK, "Mol* of ipymolstar, for reports")
    else:
        yield Check("3D viewer", WARNING, "the script of Mol* was not found", "pip install 'ipymolstar>=0.1.0,<0.2'")


def folders() -> Iterator[Check]:
    """Where models are downloaded to, and where temporary files go."""
    cache = Path(hub.HF_HUB_CACHE)
    reason = _not_writable(cache)
    if reason:
        yield Check(
            "model cache", WARNING, f"{cache}: {reason}; models cannot be downloaded", "set HF_HOME to another folder"
        )
    else:
        free = shutil.disk_usage(_existing(cache)).free
        room = "" if free >= _LARGE_DOWNLOAD else f", fewer than the {_gib(_LARGE_DOWNLOAD)} that ESMFold takes"
        remedy = "set HF_HOME to a folder with more room" if room else ""
        yield Check("model cache", WARNING if room else OK, f"{cache}: {_gib(free)} free{room}", remedy)
    try:
        temporary = Path(tempfile.gettempdir())
    except FileNotFoundError:
        yield Check("temporary files", BROKEN, "no folder can be written", "set TMPDIR to one that can")
        return
    yield Check("temporary files", OK, f"{temporary}: {_gib(shutil.disk_usage(temporary).free)} free")


def _not_writable(folder: Path) -> str:
    """Why no file can be made in `folder`, or in the nearest one above that exists; empty if one can."""
    try:
        with tempfile.NamedTemporaryFile(dir=_existing(folder)):
            return ""
    except OSError as error:
        return error.strerror or str(error)


def _existing(folder: Path) -> Path:
    return next((path for path in (folder, *folder.parents) if path.is_dir()), Path(os.sep))


def _version_of(module: str) -> str:
    names = metadata.packages_distributions().get(module, [])
    return metadata.version(names[0]) if names else "installed"


def _gib(size: int) -> str:
    return re.sub(r"\.0 ", " ", f"{size / GIB:.1f} GiB")
