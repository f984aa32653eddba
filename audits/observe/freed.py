"""Memory that was freed, given back to the system: what is worked on beside a large answer adds nothing to its peak."""

import ctypes
from functools import cache
from typing import Any


@cache
def _trim() -> Any:
    """Return the C library's function for it; None where there is none."""
    try:
        return getattr(ctypes.CDLL(None), "malloc_trim", None)
    except (OSError, TypeError):  # a system without a C library to be asked
        return None


def give_back() -> None:
    """Give back what the C library keeps of freed blocks of up to 32 MB, as rows of a large vocabulary are."""
    trim = _trim()
    if trim is not None:
        trim(0)
