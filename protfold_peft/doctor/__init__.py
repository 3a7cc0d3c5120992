"""Is this installation sound, and what can this machine do? Behind `protfold doctor`."""

from protfold_peft.doctor.checks import BROKEN, MISSING, OK, WARNING, Check
from protfold_peft.doctor.diagnosis import Diagnosis, examine

__all__ = ["BROKEN", "MISSING", "OK", "WARNING", "Check", "Diagnosis", "examine"]
