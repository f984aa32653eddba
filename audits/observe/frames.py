"""What the functions of the user's that are being called hold by name."""

import inspect
import sys
from types import FrameType
from typing import Any

_OWN = 3
"References to a frame's snapshot of its variables where nobody else has it: the frame's, ours, and the count's own."


def locals_of(frame: FrameType) -> dict[str, Any]:
    """Return a copy of a frame's variables, by name.

    Before Python 3.13 a frame that is asked for them keeps a snapshot for as long as it runs, and with it all that
    stood in them: the logits of the step before. So the snapshot is emptied, unless a call of `locals()` handed it on.
    """
    held = frame.f_locals
    found = dict(held)
    is_snapshot = sys.version_info < (3, 13) and bool(frame.f_code.co_flags & inspect.CO_OPTIMIZED)
    if is_snapshot and sys.getrefcount(held) <= _OWN:
        held.clear()
    return found
