"""Names of files outside ASCII, in a locale that cannot spell them."""

from __future__ import annotations

import os
import sys

_MODE = "PYTHONUTF8"


def use_utf8() -> None:
    """Start the program anew in Python's UTF-8 mode where names of files are read in another encoding.

    Arrow, gemmi and the tokenizers take every name to be UTF-8, and Python hands them one that its locale cannot spell
    as letters that have no UTF-8. In UTF-8 mode, which Python 3.15 has everywhere, all agree. Processes that are
    started later find the mode in their environment. Windows has it for names of files already.
    """
    if os.name != "posix" or sys.getfilesystemencoding().lower() == "utf-8" or not sys.executable:
        return
    # Set already, and yet without effect (`python -E -X utf8=0`): somebody wants it so, and it would go on for ever.
    if os.environ.get(_MODE) == "1":
        return
    os.environ[_MODE] = "1"
    os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])
