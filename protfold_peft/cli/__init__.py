"""The command line: one small file per command that parses, calls and prints."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from types import FrameType


def _end(_number: int, _frame: FrameType | None) -> None:
    os.write(2, b"interrupted\n")
    os._exit(130)


def interruptions_raise() -> None:
    """From now on Ctrl-C is a KeyboardInterrupt again."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


# Until a command begins there is nobody to tell of Ctrl-C but Python, which would show where it was in importing this.
if (
    Path(sys.argv[0] if sys.argv else "").stem == "protfold"
    and signal.getsignal(signal.SIGINT) is signal.default_int_handler
):
    signal.signal(signal.SIGINT, _end)
