"""Who packed an archive: a signature by OpenSSH in a file beside it, which ssh-keygen makes and checks.

A digest shows that a file was damaged. A signature shows that the owner of a key stands for it.
"""

import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from kdbench.harness.records.reading import content
from kdbench.kd.errors import InputError

_SPACE = "kdbench"
"What the signature is for: ssh-keygen takes none that was made for something else."
_MOST_BYTES = 2**16
"Of a file of public keys, and of a signature."
_PUBLIC = re.compile(r"((?:ssh|ecdsa|sk)-[a-z0-9@.-]+) ([A-Za-z0-9+/]+={0,3})(?: .*)?")


def signature_of(archive: Path) -> Path:
    """Return where an archive's signature lies: beside it, with .sig after its name."""
    return archive.with_name(f"{archive.name}.sig")


def sign(archive: Path, key: Path) -> Path:
    """Sign an archive with a private key (or a public one whose private half an agent holds); return the signature.

    ssh-keygen asks for the key's passphrase on the terminal, if it has one.
    """
    program = _ssh_keygen("--sign")
    if not key.is_file():
        raise InputError(f"--sign {key} does not exist; name a key of OpenSSH (ssh-keygen -t ed25519 makes one)")
    made = signature_of(archive)
    made.unlink(missing_ok=True)  # ssh-keygen would ask whether to write over it
    done = subprocess.run(
        [program, "-Y", "sign", "-f", str(key), "-n", _SPACE, str(archive)], capture_output=True, text=True
    )
    if done.returncode != 0 or not made.is_file():
        raise InputError(f"--sign {key}: ssh-keygen signed nothing: {_last_line(done.stderr)}")
    return made


def check(archive: Path, keys: Path) -> str:
    """Return the fingerprint of the key that signed an archive; InputError unless it is one of these public keys."""
    program, signature = _ssh_keygen("--signed-by"), signature_of(archive)
    if not signature.is_file():
        raise InputError(f"{archive} is not signed: there is no {signature.name} beside it")
    content(signature, _MOST_BYTES)
    allowed = "".join(f'{_SPACE} namespaces="{_SPACE}" {kind} {key}\n' for kind, key in _public_keys(keys))
    with tempfile.TemporaryDirectory(prefix="kdbench-") as place, archive.open("rb") as signed:
        (Path(place) / "allowed").write_text(allowed)
        words = ["-f", f"{place}/allowed", "-I", _SPACE, "-n", _SPACE, "-s", str(signature)]
        done = subprocess.run([program, "-Y", "verify", *words], stdin=signed, capture_output=True, text=True)
    if done.returncode != 0:
        why = _last_line(done.stderr or done.stdout)
        raise InputError(f"{archive} was not signed by a key in {keys}, or was changed since: {why}")
    said = re.search(r"SHA256:\S+", done.stdout)
    return said[0] if said else "a key that is named"


def _public_keys(path: Path) -> list[tuple[str, str]]:
    """Return the kind and the key of each line of a file of public keys, such as id_ed25519.pub."""
    text = content(path, _MOST_BYTES).decode("utf-8", errors="replace")
    if "PRIVATE KEY" in text:
        raise InputError(f"--signed-by {path} is a private key; name the public one, {path.name}.pub")
    lines = [line.strip() for line in text.splitlines()]
    found = [_PUBLIC.fullmatch(line) for line in lines if line and not line.startswith("#")]
    if not found or None in found:
        raise InputError(f"--signed-by {path} is no public key of OpenSSH, such as the line in id_ed25519.pub")
    return [(match[1], match[2]) for match in found if match is not None]


def _ssh_keygen(option: str) -> str:
    found = shutil.which("ssh-keygen")
    if found is None:
        raise InputError(f"{option} needs ssh-keygen, which is not installed here; install OpenSSH 8.2 or newer")
    return found


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it did not say why"
