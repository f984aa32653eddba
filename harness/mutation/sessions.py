"""`kdbench mutate --tests`: a pytest session for each fault, and which tests notice it."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace

from kdbench.harness.injection.mechanism import MECHANISMS
from kdbench.harness.injection.scene import NotApplicableError, Scene
from kdbench.harness.mutation.child import Outcome
from kdbench.harness.mutation.naming import Answer
from kdbench.harness.mutation.plugin import TestOrder
from kdbench.harness.mutation.processes import TookTooLongError, anew, launch
from kdbench.harness.mutation.runs import (
    CannotServeError,
    Row,
    expected_of,
    judge,
    side_by_side,
)

_TAIL = 3000
"Characters of a session's output that are shown where it failed."
_BEST: tuple[Answer | None, ...] = ("first", "named", "other", "undecided", "silent", None)


@dataclass(frozen=True)
class Session:
    """How the sessions are made."""

    path: str
    args: tuple[str, ...] = ()
    workers: int = 2
    max_seconds: float = 300.0
    share_folder: bool = False
    fault_files: tuple[str, ...] = ()


@dataclass
class Sitting:
    """What came of one session."""

    outcomes: dict[str, Outcome]
    failed: set[str]
    printed: str = ""
    "The end of what the session printed."
    seen: int = 0
    "Tests that ran."


def run_session(session: Session, order: TestOrder) -> Sitting:
    """Run the tests in a process of their own; CannotServeError where it brings no result."""
    words = ["-m", "pytest", "-q", "-p", "kdbench.harness.mutation.plugin", "-p", "no:cacheprovider", "-p", "no:xdist"]
    words += [session.path, *session.args]
    try:
        values, said = launch(anew(words, session.workers), asdict(order), session.max_seconds, session.share_folder)
    except TookTooLongError:
        raise CannotServeError(f"the tests took more than {session.max_seconds:g} seconds (--max-seconds)") from None
    if values is None:
        raise CannotServeError(f"the tests could not run:\n{said[-_TAIL:]}")
    outcomes = {name: Outcome(**outcome) for name, outcome in values["outcomes"].items()}
    return Sitting(outcomes, set(values["failed"]), said[-_TAIL:], len(values["seen"]))


def survey(session: Session, told: Callable[[str], None]) -> tuple[Sitting, list[str]]:
    """Run the tests as they are, twice; return what came of it, and remarks. CannotServeError where none can serve."""
    told("the tests as they are, twice")
    order = TestOrder("survey", fault_files=list(session.fault_files))
    with ThreadPoolExecutor(min(2, session.workers)) as pool:
        base, again = (f.result() for f in [pool.submit(run_session, session, order) for _ in range(2)])
    if base.failed | again.failed:
        names = "\n".join(sorted(base.failed | again.failed))
        raise CannotServeError(
            f"these tests fail as they are; fix them first, or leave them out (-- -k 'not NAME'):\n{names}"
        )
    if not base.seen:
        raise CannotServeError(f"pytest ran no test there; it printed:\n{base.printed}")
    remarks = []
    trained = {name: o for name, o in base.outcomes.items() if o.steps and o.distilled}
    unsteady = [
        name for name, o in trained.items() if name not in again.outcomes or again.outcomes[name].digests != o.digests
    ]
    if unsteady:
        remarks.append(f"left out, since two runs of them differ: {', '.join(sorted(unsteady))}")
    kept = {name: o for name, o in trained.items() if name not in unsteady}
    accused = [name for name, o in kept.items() if _accusers(o)]
    if accused:
        each = (f"{name} ({', '.join(_accusers(kept[name]))})" for name in sorted(accused))
        remarks.append(f"left out, since the audits accuse what they train as it is: {'; '.join(each)}")
    kept = {name: o for name, o in kept.items() if name not in accused}
    if not kept:
        why = "; ".join(remarks) or "none of the tests distils a student and steps an optimizer"
        raise CannotServeError(f"no test can serve: {why}")
    return Sitting(kept, set()), remarks


def _accusers(outcome: Outcome) -> list[str]:
    """Return the audits that accuse what a test trains, by id and name."""
    return [f"{f['id']} {f['name']}" for f in outcome.findings if f["status"] == "fail" and f["severity"] == "error"]


def place_in(base: Sitting, fault: str) -> str | None:
    """Return why a fault has no place in any of the tests; None if it has one."""
    why = ""
    for outcome in base.outcomes.values():
        try:
            MECHANISMS[fault].acts(Scene.from_json(outcome.scene or {}))
            return None
        except NotApplicableError as error:
            why = str(error)
    return why


def inject(session: Session, base: Sitting, chosen: Sequence[str]) -> Iterator[Row]:
    """Run the tests once with each fault, several sessions at a time, and yield each row as it comes."""
    scenes = {name: outcome.scene for name, outcome in base.outcomes.items()}

    def one(fault: str) -> Row:
        order = TestOrder("fault", fault, scenes, list(session.fault_files))
        try:
            sitting = run_session(session, order)
        except CannotServeError as error:
            return Row(fault, "broken", str(error), expected_of(fault))
        return together(fault, base, sitting)

    yield from side_by_side(one, chosen, session.workers)


def together(fault: str, base: Sitting, sitting: Sitting) -> Row:
    """Return one row for all tests in which a fault acted: kdbench's best answer, and every test that failed."""
    rows = [
        judge(fault, base.outcomes[name], outcome, 0.0)
        for name, outcome in sitting.outcomes.items()
        if name in base.outcomes
    ]
    acting = [row for row in rows if row.status == "injected"]
    noticed = tuple(sorted(sitting.failed))
    if not acting and not noticed:
        why = rows[0].why if rows else "the place of the fault was not reached in these tests"
        return Row(fault, "dormant", why, expected_of(fault), by_tests=())
    best = min(acting or rows, key=lambda row: _BEST.index(row.kdbench)) if rows else Row(fault, "injected")
    where = tuple(sorted({place for row in acting for place in row.where}))
    return replace(best, status="injected", by_script=None, by_tests=noticed, where=where)
