"""How the library's own words are said on the command line, for messages that it raised without knowing of one."""

from kdbench.kd.errors import InputError

_SAID = {
    "root": "--data DIR",
    "name and root": "--dataset folder --data DIR",
    "teacher": "kdbench run trains one",
}


def told(error: InputError) -> str:
    """Return an error's message, with the option that mends it where there is one."""
    return f"{error} ({_SAID[error.about]})" if error.about is not None else str(error)
