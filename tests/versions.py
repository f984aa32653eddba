"""Prints, as constraints for pip, the oldest version of each package that pyproject.toml allows.

    python tests/versions.py > oldest.txt

Of a package without a lower bound nothing is said. What the packages themselves need is pip's to choose.
"""

import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
EXTRAS = ("test", "lightning", "huggingface", "dask")
"That `make test-versions` installs."


def oldest(project: Path) -> list[str]:
    """Return a line a package, such as numpy==1.26."""
    with project.open("rb") as file:
        found = tomllib.load(file)["project"]
    texts = [*found["dependencies"], *(text for extra in EXTRAS for text in found["optional-dependencies"][extra])]
    lines = {}
    for one in map(Requirement, texts):
        lowest = [part.version for part in one.specifier if part.operator == ">="]
        if lowest:
            lines[one.name] = f"{one.name}=={lowest[0]}"
    return [lines[name] for name in sorted(lines)]


def main() -> int:
    """Print the constraints."""
    print("\n".join(oldest(ROOT / "pyproject.toml")))
    return 0


if __name__ == "__main__":
    sys.exit(main())
