"""Targets of CASP and CAMEO: downloaded with checksums, or taken from a folder, and laid out for comparisons."""

from protfold_peft.data.casp.assemble import Assembled
from protfold_peft.data.casp.make import from_cameo, from_casp, from_folder
from protfold_peft.data.casp.sources import EDITIONS, cameo_source, source_of

__all__ = ["EDITIONS", "Assembled", "cameo_source", "from_cameo", "from_casp", "from_folder", "source_of"]
