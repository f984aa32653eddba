"""The one exception for what a user can fix, and its commonest wording."""

import difflib
from collections.abc import Iterable

_FEW, _SOME = 12, 5
"Names up to which all are listed where none is near, and how many are of more."


class InputError(ValueError):
    """Raised for input that cannot be used; the message says what, where and how to fix it.

    `about` names what would fix it in the library's own words, so that a program built on it can add how that is
    said to it.
    """

    def __init__(self, message: str, about: str | None = None) -> None:
        super().__init__(message)
        self.about = about


def unknown(kind: str, word: str, choices: Iterable[str], where: str = "") -> InputError:
    """Return the error for a name that does not exist, with the nearest one that does.

    Without a near one all are listed where they are few, else some. Its `about` is "unknown" and the kind.
    """
    names = sorted(choices)
    alike = [name for name in names if name.casefold() == "".join(word.split()).casefold()]
    near = alike or difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    if near:
        hint = f"did you mean {near[0]!r}?"
    elif len(names) <= _FEW:
        hint = f"there are: {', '.join(names)}"
    else:
        hint = f"there are {len(names)}, such as {', '.join(names[:_SOME])}"
    return InputError(f"{where}{': ' if where else ''}unknown {kind} {word!r}; {hint}", f"unknown {kind}")
