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


_MANY = 12
"Names that an error lists; of more it lists the nearest."
_NEAREST = 6


def unknown(kind: str, word: str, choices: Iterable[str], where: str = "") -> InputError:
    """Return the error for a name that does not exist, with the nearest one that does and the others, if few."""
    names = sorted(choices)
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    listed = f"There are: {', '.join(names)}"
    if len(names) > _MANY:
        nearest = difflib.get_close_matches(word, names, n=_NEAREST, cutoff=0)
        listed = f"The nearest of {len(names)}: {', '.join(nearest)}"
    return InputError(f"{where}{': ' if where else ''}unknown {kind} {word!r}; {hint}{listed}")
