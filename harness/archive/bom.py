"""What software an archive's study ran with, as a software bill of materials in the form of CycloneDX 1.5."""

from collections.abc import Mapping
from importlib import metadata
from typing import Any

_LONGEST_LICENCE = 100
"Characters: some packages give the whole text where a name belongs."


def bill_of_materials(packages: Mapping[str, str], study: str) -> dict[str, Any]:
    """Return the bill for these packages by version; it bears no time, so that equal studies give equal bytes."""
    refs = {name: f"pkg:pypi/{name}@{version}" for name, version in packages.items()}
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"component": {"type": "data", "name": study, "bom-ref": study}},
        "components": [_component(name, version, refs[name]) for name, version in packages.items()],
        "dependencies": [
            {"ref": study, "dependsOn": [refs[name] for name in ("kdbench",) if name in refs]},
            *({"ref": refs[name], "dependsOn": sorted(refs[n] for n in _needs(name) & refs.keys())} for name in refs),
        ],
    }


def _component(name: str, version: str, ref: str) -> dict[str, Any]:
    licence = _licence(name)
    licences = {} if licence is None else {"licenses": [licence]}
    return {"type": "library", "name": name, "version": version, "bom-ref": ref, "purl": ref, **licences}


def _licence(name: str) -> dict[str, Any] | None:
    """Return a package's licence as it names it: an SPDX expression, or a name; None where it names none."""
    found = metadata.metadata(name)
    if "License-Expression" in found:
        return {"expression": found["License-Expression"]}
    named = [text.rpartition(" :: ")[2] for text in found.get_all("Classifier") or () if text.startswith("License :: ")]
    text = found["License"].strip() if "License" in found else ""
    if text and "\n" not in text and len(text) <= _LONGEST_LICENCE:
        named = [text]
    return {"license": {"name": " or ".join(named)}} if named else None


def _needs(name: str) -> set[str]:
    """Return the names of what a package requires, without what stands behind an extra."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    needed = [Requirement(text) for text in metadata.requires(name) or ()]
    always = [one for one in needed if one.marker is None or one.marker.evaluate({"extra": ""})]
    return {
        str(canonicalize_name(one.name)) for one in always if canonicalize_name(one.name) != canonicalize_name(name)
    }
