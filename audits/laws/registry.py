"""The table of laws, and what makes a function one of them."""

import contextlib
import functools
import inspect
import os
import random
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ParamSpec

import torch

from kdbench.audits.checks.catalogue import Verdict
from kdbench.audits.finding import FUNCTION_BROKE, Finding, Severity
from kdbench.audits.laws.answers import OddAnswerError
from kdbench.audits.places import shown
from kdbench.audits.updates import Where

Parameters = ParamSpec("Parameters")


@dataclass(frozen=True)
class Law:
    """One entry of the table of laws."""

    id: str
    name: str
    severity: Severity
    mend: str
    function: Callable[..., Finding]

    @property
    def story(self) -> str:
        """What must hold and when it fails: the function's docstring."""
        return inspect.cleandoc(self.function.__doc__ or "")


LAWS: dict[str, Law] = {}
"Every law by name."


def law(
    id: str, name: str, *, severity: Severity = "error", mend: str
) -> Callable[[Callable[Parameters, Verdict]], Callable[Parameters, Finding]]:
    """Enter a function into the table of laws, and let it give findings, raise nothing and move no random state."""

    def enter(check: Callable[Parameters, Verdict]) -> Callable[Parameters, Finding]:
        @functools.wraps(check)
        def judge(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Finding:
            where = None
            try:
                with same_random_state():
                    where = place_of(next(filter(callable, (*args, *kwargs.values())), None))
                    verdict = check(*args, **kwargs)
            except OddAnswerError as odd:
                verdict = Verdict("error", str(odd), reason=FUNCTION_BROKE)
            except Exception as error:  # the user's, or of a form that nobody thought of: nothing was decided
                if os.environ.get("KDBENCH_DEBUG"):
                    traceback.print_exception(error)
                verdict = Verdict("error", _ended_in(error), reason=FUNCTION_BROKE)
            return Finding(
                id=id,
                name=name,
                severity=severity,
                status=verdict.status,
                phase="static",
                message=verdict.message,
                observed=verdict.observed,
                mend=mend,
                where=where,
                reason=verdict.reason,
                decide_with=verdict.decide_with,
            )

        LAWS[name] = Law(id, name, severity, mend, judge)
        return judge

    return enter


@contextlib.contextmanager
def same_random_state() -> Iterator[None]:
    """Leave the global random states of torch, CUDA, numpy and random as they were before the block."""
    # Neither CUDA nor numpy is brought in for this: what is not in use has no state to keep.
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    numpy = sys.modules.get("numpy")
    of_random, of_numpy = random.getstate(), numpy.random.get_state() if numpy else None
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(of_random)
        if numpy:
            numpy.random.set_state(of_numpy)


def place_of(function: Any) -> Where | None:
    """Return file and line of a function of the user's; None for what is not written as a function."""
    while isinstance(function, functools.partial):
        function = function.func
    code = getattr(inspect.unwrap(function), "__code__", None) if function else None
    if code is None:
        return None
    return {
        "file": shown(code.co_filename),
        "line": code.co_firstlineno,
    }


def _ended_in(error: Exception) -> str:
    lines = "".join(traceback.format_exception_only(error)).strip().splitlines()
    return f"ended in {lines[0]}" + (f" ... {lines[-1].strip()}" if len(lines) > 1 else "")
