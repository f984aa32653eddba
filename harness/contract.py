"""The contract of a training script: what an audit inferred of it, corrected, and held to from then on."""

import json
import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdbench.harness.records.reading import read_toml
from kdbench.kd.errors import InputError, unknown

if TYPE_CHECKING:
    from kdbench.audits.trace import Trace
    from kdbench.audits.updates import Where

FILE = "kdbench.lock"
"The name under which it is found beside a script."


@dataclass(frozen=True)
class Contract:
    """Declared intent; None where nothing is said."""

    student: str | None = None
    "Variable or class of the network that is trained."
    teacher: str | None = None
    temperature: float | None = None
    alpha: float | None = None
    "Weight of the distillation term where the label term has 1 - alpha."
    kd_weight: float | None = None
    "Weight of the distillation term by itself."
    max_norm: float | None = None
    clip_scope: str | None = None
    "global or per_group."
    form: str | None = None
    "Of the distillation term, where it is not T^2 KL: decoupled, or own, which no audit is asked to know."

    def __post_init__(self) -> None:
        for name in ("student", "teacher", "clip_scope", "form"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                raise InputError(f"{name} is {value!r}; it must be a text")
        for name in ("temperature", "alpha", "kd_weight", "max_norm"):
            value = getattr(self, name)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
                raise InputError(f"{name} is {value!r}; it must be a positive number")
        if self.clip_scope not in (None, "global", "per_group"):
            raise unknown("clip_scope", self.clip_scope, ["global", "per_group"])
        if self.form not in (None, "decoupled", "own"):
            raise unknown("form", self.form, ["decoupled", "own"])
        if self.alpha is not None and self.kd_weight is not None:
            raise InputError("alpha and kd_weight both weigh the distillation term; give one of them")
        if self.alpha is not None and self.alpha > 1:
            raise InputError(
                f"alpha is {self.alpha:g}, more than 1; set kd_weight instead, since the labels have 1 - alpha"
            )


@dataclass(frozen=True)
class Choices:
    """[tool.kdbench]: what the options of the same names say otherwise; the command line wins."""

    select: list[str] | None = None
    "Ids or names of the audits that count; all, where nothing is named."
    ignore: list[str] | None = None
    waive: list[str] | dict[str, str] | None = None
    "As KD312=REASON each, or a table of reasons by id."
    strict: bool | None = None
    "Whether warnings fail as well."
    steps: int | None = None
    max_seconds: float | None = None
    max_norm: float | None = None
    clip_scope: str | None = None
    form: str | None = None
    temperature: float | None = None
    alpha: float | None = None
    kd_weight: float | None = None
    student: str | None = None
    teacher: str | None = None
    baseline: str | None = None
    "File, beside this one."
    contract: str | None = None
    "File, beside this one."
    format: str | None = None


def read_contract(path: Path) -> Contract:
    """Read a contract strictly; InputError names the file, the key and the nearest one that there is."""
    if not path.exists():
        raise InputError(f"contract {path} does not exist; write it with --write-contract {path}")
    raw = read_toml(path, "a contract, which is TOML")
    names = [f.name for f in fields(Contract)]
    for key in raw:
        if key not in names:
            raise unknown("key", key, names, f"contract {path}")
    try:
        return Contract(**raw)
    except InputError as error:
        raise InputError(f"contract {path}: {error}") from error


def contract_text(trace: "Trace", target: str) -> str:
    """Return a contract's TOML with what was seen of a script, each value with the line it was read from."""
    lines = [
        f"# What kdbench audit inferred of {target}. Correct what is wrong and commit it: later runs are held to it.",
        "",
    ]

    def entry(key: str, value: Any, comment: str) -> None:
        said = json.dumps(value, ensure_ascii=False)
        lines.append(f"{key} = {said}  # {comment}" if value is not None else f"# {key} = ...  # {comment}")

    sight = trace.losses.sights[0] if trace.losses.sights else None
    backward = f"backward at {_place(sight.where)}" if sight else "no distillation was seen"
    for role in ("student", "teacher"):
        found = trace.roles.get(role, [])
        name = _name(found[0]) if len(found) == 1 else None
        entry(role, name, f"{', '.join(found) or 'not recognised'}; {backward}")
    projectors = trace.roles.get("projectors", [])
    lines.append(f"# projectors: {', '.join(projectors) or 'none'}")
    read = [(s, e) for s in trace.losses.sights for e in s.explanations if e.form == "forward" and e.temperature]
    if read:
        sight, e = read[0]
        at = next((_place(t.where) for t in sight.terms if t.kind == "soft" and t.where), _place(sight.where))
        entry("temperature", _rounded(e.temperature[0]), f"soft term at {at}")
        if e.weight is None:
            lines.append(f"# alpha or kd_weight: not read; soft term at {at}")
        else:
            labels = e.label_weight
            sums = labels is not None and abs(labels + e.weight - 1) < 2e-3 and 0 < e.weight < 1
            said = "unknown" if labels is None else f"{_rounded(labels):g}"
            entry(
                "alpha" if sums else "kd_weight", _rounded(e.weight), f"in force at {at}; the labels' weight is {said}"
            )
    else:
        lines.append("# temperature, alpha, kd_weight: no soft term of a known form was seen")
        lines.append('# form = "own"  # uncomment where the distillation term is meant to be of a form of its own')
    clipped = [step for step in trace.updates.steps if step.clips and step.distils]
    bounds = {clip.bound for step in clipped for clip in step.clips if clip.kind == "norm"}
    if len(bounds) == 1:
        several = any(len(step.clips) > 1 for step in clipped)
        at = f"clip at {_place(clipped[0].clips[0].where)}"
        entry("max_norm", _rounded(bounds.pop()), at)
        entry(
            "clip_scope", "per_group" if several else "global", f"{'several calls' if several else 'one call'} a step"
        )
    else:
        lines.append(f"# max_norm, clip_scope: {'clips have several bounds' if bounds else 'no clip by norm was seen'}")
    return "\n".join(lines) + "\n"


def _rounded(value: float) -> float:
    """Return a weight as somebody would have written it: what is read off a gradient ends in rounding errors."""
    return float(f"{value:.4g}")


def _place(where: "Where | None") -> str:
    return f"{where['file']}:{where['line']}" if where else "a line that was not seen"


def _name(found: str) -> str | None:
    """Return the variable in `Class (variable)`; None where a class or an attribute is all there is.

    Those may be another network's in an earlier part of the script, and a name must find the same one in every run.
    """
    match = re.fullmatch(r"\w+ \((\w+)\)", found)
    return match[1] if match else None
