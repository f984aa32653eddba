"""The registry of the faults: what a fault is, and how one joins."""

import difflib
import hashlib
import inspect
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache, cached_property, wraps
from pathlib import Path
from typing import Any, Literal, TypeVar

from kdbench.audits.checks.all import CATALOGUE
from kdbench.audits.laws import LAWS
from kdbench.harness import loading
from kdbench.harness.records.digests import without_comments, without_docstring
from kdbench.kd.errors import InputError, unknown
from kdbench.kd.methods import METHODS, Soft
from kdbench.kd.procedure import CANONICAL, Procedure
from kdbench.kd.recipe import Recipe

Scope = Literal["student", "both"]
Needs = Literal["teacher", "own-teacher", "projectors", "scaler", "distillation"]
"""What must be there for a fault to act; own-teacher: the teacher itself, which a folded copy would hide."""
Function = TypeVar("Function", bound=Callable[..., Any])

SEAMS = tuple(field.name for field in fields(Procedure))
_READ_OF_HINTON = {"kd-scale", "target-form"}
"Audits that read T^2 KL off the gradient at the logits, and so decide nothing where a method declares another form."
_READ_OF_ROWS = {"alignment"}
"Audits that need a divergence of the two softmaxes of each row, whatever its form."


@dataclass(frozen=True)
class Fault:
    """One bug: which decision it replaces, by what, and which audits must tell."""

    name: str
    seam: str
    function: Callable[..., Any]
    caught_by: tuple[str, ...]
    "Names of the audits that must fail on every seed."
    follows: tuple[str, ...]
    "Names of the audits that may fail as a consequence."
    scope: Scope
    "Whose training it is in: the student's alone, or the teacher's as well."
    needs: Needs | None
    escapes: str | None = None
    "Why no audit need tell, where none does."

    @property
    def story(self) -> str:
        """What goes wrong, and where it was seen."""
        return inspect.cleandoc(self.function.__doc__ or "")

    @cached_property
    def digest(self) -> str:
        """Digest of the function's source but for docstring and comments: a changed fault is another experiment."""
        return hashlib.sha256(source(self.function).encode()).hexdigest()[:16]

    def ids(self, names: tuple[str, ...]) -> list[str]:
        """Return the stable ids of audits given by name."""
        known = audit_ids()
        return sorted(known[name] for name in names)

    @property
    def is_ours(self) -> bool:
        """Whether it comes with kdbench, and not from a file of the user's."""
        return self.function.__module__.startswith(__name__.partition(".")[0] + ".")

    @property
    def in_teacher(self) -> "Fault | None":
        """What of it is in the teacher's training as well."""
        return self if self.scope == "both" else None

    def why_not(self, method: str) -> str | None:
        """Return why the fault has nothing to replace in a method; None if it applies."""
        kind = METHODS[method]
        if self.seam == "soft_loss" and "soft_loss" not in kind.seams:
            return f"{method} has no soft term" if kind.soft is Soft.NONE else f"{method} does not ask for soft_loss"
        if kind.soft not in (Soft.NONE, Soft.HINTON) and _READ_OF_HINTON & {*self.caught_by}:
            return f"the soft term of {method} is {kind.soft.value}, and the audit that tells reads T^2 KL"
        if kind.soft is Soft.OTHER and _READ_OF_ROWS & {*self.caught_by}:
            return f"the soft term of {method} is {kind.soft.value}, and the audit that tells reads divergences"
        if (self.seam == "features" and "features" not in kind.seams) or (
            self.needs == "projectors" and not kind.has_projectors
        ):
            return f"{method} has no projectors"
        if (self.needs in ("teacher", "own-teacher") or self.seam == "teacher_answer") and not kind.needs_teacher:
            return f"{method} has no teacher"
        if self.needs == "distillation" and not kind.needs_teacher:
            return f"{method} distils nothing, and the audit that tells is of distillations"
        return None

    @property
    def needs_test_scores(self) -> bool:
        """Whether each epoch must be scored on the test set, for a rule that selects by it."""
        return self.seam == "select"

    def recipe(self, recipe: Recipe) -> Recipe:
        """Return the recipe in which the fault can act: with a gradient scaler, with teacher and update as they are."""
        if self.needs == "scaler":
            recipe = replace(recipe, precision="fp16")
        if self.needs == "own-teacher":
            recipe = replace(recipe, fold_teacher=False)
        # A captured teacher gives no gradient, and captured gradients are overwritten where a fault adds them up.
        hidden = self.needs == "own-teacher" or self.seam == "order"
        return replace(recipe, graphs=False) if hidden and recipe.graphs else recipe

    @property
    def needs_scaler(self) -> bool:
        """Whether it acts under a gradient scaler only."""
        return self.recipe(Recipe()).precision == "fp16"

    def difference(self) -> str:
        """Return the difference to the canonical function as a unified diff, computed from the sources."""
        canonical = getattr(CANONICAL, self.seam)
        before, after = (source(function).splitlines() for function in (canonical, self.function))
        lines = difflib.unified_diff(before, after, f"canonical {self.seam}", f"fault {self.name}", lineterm="", n=20)
        return "\n".join(lines)

    def inject(self, procedure: Procedure, reached: Callable[[], None]) -> Procedure:
        """Return the procedure with this one decision replaced; `reached` is called whenever it is asked for."""

        @wraps(self.function)  # whoever asks where the decision is made is shown the fault, not this
        def counted(*args: Any, **kwargs: Any) -> Any:
            reached()
            return self.function(*args, **kwargs)

        return replace(procedure, **{self.seam: counted})


@dataclass(frozen=True)
class Together(Fault):
    """Several faults at once, each in a seam of its own."""

    parts: tuple[Fault, ...] = ()

    @property
    def story(self) -> str:
        """What goes wrong: each part's story."""
        return "\n\n".join(f"{part.name}: {part.story}" for part in self.parts)

    @property
    def digest(self) -> str:
        """Digest of the parts'."""
        return hashlib.sha256("".join(part.digest for part in self.parts).encode()).hexdigest()[:16]

    @property
    def is_ours(self) -> bool:
        """Whether each part comes with kdbench."""
        return all(part.is_ours for part in self.parts)

    @property
    def in_teacher(self) -> Fault | None:
        """The parts that are in the teacher's training as well."""
        shared = [part for part in self.parts if part.scope == "both"]
        return together(shared) if shared else None

    @property
    def needs_test_scores(self) -> bool:
        """Whether a part needs them."""
        return any(part.needs_test_scores for part in self.parts)

    def why_not(self, method: str) -> str | None:
        """Return why a part has nothing to replace in a method."""
        return next((why for part in self.parts if (why := part.why_not(method))), None)

    def recipe(self, recipe: Recipe) -> Recipe:
        """Return the recipe in which every part can act."""
        for part in self.parts:
            recipe = part.recipe(recipe)
        return recipe

    def difference(self) -> str:
        """Return the parts' differences, one after another."""
        return "\n".join(part.difference() for part in self.parts)

    def inject(self, procedure: Procedure, reached: Callable[[], None]) -> Procedure:
        """Return the procedure with each part's decision replaced."""
        for part in self.parts:
            procedure = part.inject(procedure, reached)
        return procedure


def together(parts: Sequence[Fault]) -> Fault:
    """Return one fault that is all of these, or the one there is; two in one seam are an InputError."""
    parts = sorted(parts, key=lambda part: part.name)
    if len(parts) == 1:
        return parts[0]
    seams = [part.seam for part in parts]
    for part in parts:
        if seams.count(part.seam) > 1:
            both = " and ".join(p.name for p in parts if p.seam == part.seam)
            raise InputError(f"{both} both replace {part.seam}; of two faults in one seam only one could act")
    names = [part.name for part in parts]
    caught = dict.fromkeys(name for part in parts for name in part.caught_by)
    follows = dict.fromkeys(name for part in parts for name in part.follows if name not in caught)
    return Together(
        "+".join(names),
        "+".join(seams),
        parts[0].function,
        tuple(caught),
        tuple(follows),
        "both" if any(part.scope == "both" for part in parts) else "student",
        None,
        None if caught else "; ".join(f"{part.name}: {part.escapes}" for part in parts),
        tuple(parts),
    )


def audit_ids() -> dict[str, str]:
    """Return ids by name: of the audits of a training, and of the laws that its functions are held to."""
    return {name: audit.id for name, audit in CATALOGUE.items()} | {name: law.id for name, law in LAWS.items()}


@cache
def source(function: Callable[..., Any]) -> str:
    """Return a function's source under its seam's name, without decorator, docstring and comments."""
    lines = textwrap.dedent(inspect.getsource(function)).splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("def "))
    return without_docstring(without_comments("\n".join(lines[start:])))


FAULTS: dict[str, Fault] = {}
"Every fault by its name on the command line."


def fault(
    seam: str,
    *,
    caught_by: list[str],
    follows: list[str] | None = None,
    scope: Scope = "student",
    needs: Needs | None = None,
    escapes: str | None = None,
) -> Callable[[Function], Function]:
    """Register a function as the fault that replaces `seam`; its name is the function's in kebab case.

    `caught_by` and `follows` name audits or property checks by name or id.
    """

    def register(function: Function) -> Function:
        name = function.__name__.replace("_", "-")
        if seam not in SEAMS:
            raise unknown("seam", seam, SEAMS, f"fault {name}")
        expected, found = (list(inspect.signature(f).parameters) for f in (getattr(CANONICAL, seam), function))
        if expected != found:
            raise InputError(f"fault {name}: the seam {seam} takes ({', '.join(expected)}), not ({', '.join(found)})")
        known = audit_ids()
        by_id = {id: word for word, id in known.items()}
        caught, behind = (tuple(by_id.get(audit, audit) for audit in audits) for audits in (caught_by, follows or ()))
        for audit in [*caught, *behind]:
            if audit not in known:
                raise unknown(
                    "audit", audit, [*known, *by_id] if audit.upper().startswith("KD") else known, f"fault {name}"
                )
        if not (function.__doc__ or "").strip():
            raise InputError(f"fault {name} has no docstring; write in its first line what goes wrong")
        if (not caught_by) != (escapes is not None):
            raise InputError(f"fault {name}: it is caught by an audit, or says why it escapes them all (escapes=)")
        if name in FAULTS:
            raise InputError(f"fault {name} is registered already")
        source(function)  # read now: what is edited later is not what acts here
        FAULTS[name] = Fault(name, seam, function, caught, behind, scope, needs, escapes)
        return function

    return register


def get(name: str) -> Fault:
    """Return the fault of this name, or of several joined by ``+``; InputError with the nearest one."""
    names = list(dict.fromkeys(name.split("+")))
    for part in names:
        if part not in FAULTS:
            raise unknown("fault", part, FAULTS)
    return together([FAULTS[part] for part in names])


def load(path: Path) -> None:
    """Register the faults, and audits, in a file of the user's, once; a file that does not do so is an InputError."""
    loading.load("faults", path)


loading.KINDS["faults"] = loading.Kind(
    "faults",
    "--faults",
    "fault",
    "decorate a function with @fault (from kdbench.harness.faults)",
    lambda: (FAULTS, CATALOGUE),
)
