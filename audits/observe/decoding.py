"""When a network writes: it answers again and again, without learning, what it chose itself a moment ago.

A text takes thousands of such answers, none of which says more than the first ones, so they are not recorded.
"""

from torch import nn

from kdbench.audits.updates import Where

_TELLING = 8
"Answers of one network in a row, called at one line, each to what it chose itself, from which it writes."


class Decoding:
    """Counts the answers of a network to its own choices."""

    def __init__(self) -> None:
        self._key: tuple[int, str, int] | None = None
        self._count = 0

    def answers(self, module: nn.Module, where: Where | None, own_choice: bool) -> None:
        """Take in that a network that nothing called answered, and whether, without learning, to its own choice."""
        key = None if where is None else (id(module), str(where["file"]), int(where["line"]))
        if not own_choice:
            self.forget()
        elif key == self._key:
            self._count += 1
        else:
            self._key, self._count = key, 1

    @property
    def is_likely(self) -> bool:
        """Whether the last answers were those of a network that writes."""
        return self._count >= _TELLING

    def goes_on(self, module: nn.Module, where: Where | None, learns: bool) -> bool:
        """Say whether a call is one more of a text that is being written."""
        if not self.is_likely or learns or where is None:
            return False
        return self._key == (id(module), str(where["file"]), int(where["line"]))

    def forget(self) -> None:
        """Take in that something else happens."""
        self._key, self._count = None, 0
