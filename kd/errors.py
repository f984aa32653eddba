"""The one exception for what a user can mend, and its commonest wording."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Raised for input that cannot be used; the message says what, where and how to mend it.

    `about` names what would mend it in the library's own words, so that a program built on it can add how that is
    said to it.
    """

    def __init__(self, message: str, about: str | None = None) -> None:
        super().__init__(message)
        self.about = about


def unknown(kind: str, word: str, choices: Iterable[str], where: str = "") -> InputError:
    """Return the error for a name that does not exist, with the nearest one that does and all the others."""
    names = sorted(choices)
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return InputError(f"{where}{': ' if where else ''}unknown {kind} {word!r}; {hint}There are: {', '.join(names)}")
