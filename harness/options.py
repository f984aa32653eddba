"""How the library's own words are said on the command line, for messages that it raised without knowing of one."""

import re

from kdbench.kd.errors import InputError

_MOST = 2000
"Characters of a message: what a user's file holds may be of any length."
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"What moves a terminal's cursor, sets its title or turns text round; lines and tabs are let be."
_SAID = {
    "root": "--data DIR",
    "name and root": "--dataset folder --data DIR",
    "teacher": "kdbench run trains one",
    "archive size": "--max-size GB",
    "unknown command": "kdbench --help lists them",
    "unknown preset": "a file of your own is named in its place: kdbench run STUDY.toml",
    "unknown method": "kdbench methods lists them; --method-file FILE loads a method of your own",
    "unknown network": "kdbench methods lists them; --model-file FILE loads a network of your own",
    "unknown pair": "kdbench methods lists the networks; --model-file FILE loads one of your own",
    "unknown fault": "kdbench faults list shows them; --faults FILE loads a fault of your own",
    "unknown arm of a study": "an arm is corrected or a fault, see kdbench faults list; methods stand in methods",
    "unknown arm": "an arm is corrected, a fault or a method; kdbench faults list and kdbench methods show them",
    "unknown study": "kdbench status lists the studies",
    "unknown document": "kdbench schema lists them",
}


def told(error: InputError) -> str:
    """Return an error's message, with the option or command that helps where there is one."""
    said = _SAID.get(error.about) if error.about is not None else None
    text = clean(str(error))
    return f"{text} ({said})" if said is not None else text


def clean(text: str) -> str:
    """Return a text as a terminal may have it: control characters escaped, and of a bounded length."""
    return escaped(text if len(text) <= _MOST else f"{text[: _MOST // 2]} [...] {text[-_MOST // 4 :]}")


def escaped(text: str) -> str:
    """Return a text with its control characters escaped, of its whole length."""
    return _CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)


def one_line(text: str) -> str:
    """Return a name as it is shown: on one line, control characters escaped, of a bounded length."""
    return clean(re.sub(r"[\n\t]", lambda found: ascii(found[0])[1:-1], text))
