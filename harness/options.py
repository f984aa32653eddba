"""How the library's own words are said on the command line, for messages that it raised without knowing of one."""

from kdbench.kd.errors import InputError

_SAID = {
    "root": "--data DIR",
    "name and root": "--dataset folder --data DIR",
    "teacher": "kdbench run trains one",
    "unknown command": "kdbench --help lists them",
    "unknown preset": "a file of your own is named in its place: kdbench run STUDY.toml",
    "unknown method": "kdbench methods lists them; --method-file FILE loads a method of your own",
    "unknown network": "kdbench methods lists them; --model-file FILE loads a network of your own",
    "unknown pair": "kdbench methods lists the networks; --model-file FILE loads one of your own",
    "unknown fault": "kdbench faults list shows them; --faults FILE loads a fault of your own",
    "unknown arm": "an arm is corrected, a fault or a method; kdbench faults list and kdbench methods show them",
    "unknown study": "kdbench status lists the studies",
}


def told(error: InputError) -> str:
    """Return an error's message, with the option or command that helps where there is one."""
    said = _SAID.get(error.about) if error.about is not None else None
    return f"{error} ({said})" if said is not None else str(error)
