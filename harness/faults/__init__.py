"""The faults: each one small function that replaces one field of `Procedure`, its docstring the story.

A new fault is one decorated function in one of these files. The decorator refuses at import a seam that does not
exist, a signature other than the canonical one, and an audit that is not in the catalogue.
"""

import difflib
import hashlib
import inspect
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, TypeVar

from audits.checks import CATALOGUE
from audits.laws import LAWS
from kd.errors import InputError, unknown
from kd.methods import METHODS
from kd.procedure import CANONICAL, Procedure
from kd.recipe import Recipe

Scope = Literal["student", "both"]
Needs = Literal["teacher", "projectors", "scaler", "distillation"]
Function = TypeVar("Function", bound=Callable[..., Any])

AUDITS = {name: audit.id for name, audit in CATALOGUE.items()} | {name: law.id for name, law in LAWS.items()}
"Ids by name: of the audits of a training, and of the laws that its functions are held to."
SEAMS = tuple(field.name for field in fields(Procedure))


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

    @property
    def digest(self) -> str:
        """Digest of the function's source but for its docstring: a changed fault is another experiment."""
        return hashlib.sha256(_body(self.function).encode()).hexdigest()[:16]

    def ids(self, names: tuple[str, ...]) -> list[str]:
        """Return the stable ids of audits given by name."""
        return sorted(AUDITS[name] for name in names)

    def why_not(self, method: str) -> str | None:
        """Return why the fault has nothing to replace in a method; None if it applies."""
        kind = METHODS[method]
        if self.seam == "soft_loss" and "temperature" not in kind.settings:
            return f"{method} has no soft term"
        if (self.seam == "features" or self.needs == "projectors") and not kind.has_projectors:
            return f"{method} has no projectors"
        if (self.needs == "teacher" or self.seam == "teacher_answer") and not kind.needs_teacher:
            return f"{method} has no teacher"
        if self.needs == "distillation" and not kind.needs_teacher:
            return f"{method} distils nothing, and the audit that tells is of distillations"
        return None

    @property
    def needs_test_scores(self) -> bool:
        """Whether each epoch must be scored on the test set, for a rule that selects by it."""
        return self.seam == "select"

    def recipe(self, recipe: Recipe) -> Recipe:
        """Return the recipe in which the fault can act: one with a gradient scaler in it, if the fault needs that."""
        return replace(recipe, precision="fp16") if self.needs == "scaler" else recipe

    def difference(self) -> str:
        """Return the difference to the canonical function as a unified diff, computed from the sources."""
        canonical = getattr(CANONICAL, self.seam)
        before, after = (_body(function).splitlines() for function in (canonical, self.function))
        lines = difflib.unified_diff(before, after, f"canonical {self.seam}", f"fault {self.name}", lineterm="", n=20)
        return "\n".join(lines)

    def inject(self, procedure: Procedure, reached: Callable[[], None]) -> Procedure:
        """Return the procedure with this one decision replaced; `reached` is called whenever it is asked for."""

        def counted(*args: Any, **kwargs: Any) -> Any:
            reached()
            return self.function(*args, **kwargs)

        return replace(procedure, **{self.seam: counted})


def _body(function: Callable[..., Any]) -> str:
    """Return a function's source under its seam's name, without decorator and docstring."""
    lines = textwrap.dedent(inspect.getsource(function)).splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("def "))
    source = "\n".join(lines[start:])
    if function.__doc__:
        opening = source.index('"""')
        closing = source.index('"""', opening + 3) + 3
        source = source[:opening].rstrip() + source[closing:]
    return source


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
    """Register a function as the fault that replaces `seam`; its name is the function's in kebab case."""

    def register(function: Function) -> Function:
        name = function.__name__.replace("_", "-")
        if seam not in SEAMS:
            raise unknown("seam", seam, SEAMS, f"fault {name}")
        expected, found = (list(inspect.signature(f).parameters) for f in (getattr(CANONICAL, seam), function))
        if expected != found:
            raise InputError(f"fault {name}: the seam {seam} takes ({', '.join(expected)}), not ({', '.join(found)})")
        for audit in [*caught_by, *(follows or [])]:
            if audit not in AUDITS:
                raise unknown("audit", audit, AUDITS, f"fault {name}")
        if (not caught_by) != (escapes is not None):
            raise InputError(f"fault {name}: it is caught by an audit, or says why it escapes them all (escapes=)")
        if name in FAULTS:
            raise InputError(f"fault {name} is registered already")
        FAULTS[name] = Fault(name, seam, function, tuple(caught_by), tuple(follows or ()), scope, needs, escapes)
        return function

    return register


def get(name: str) -> Fault:
    """Return the fault of this name, or raise InputError with the nearest one."""
    if name not in FAULTS:
        raise unknown("fault", name, FAULTS)
    return FAULTS[name]


from harness.faults import (  # noqa: E402  (they register their faults)
    architecture,  # noqa: F401
    clipping,  # noqa: F401
    data,  # noqa: F401
    loss,  # noqa: F401
    student,  # noqa: F401
    study,  # noqa: F401
    teacher,  # noqa: F401
    update,  # noqa: F401
)
