"""The runs of `kdbench mutate`: as many processes as faults, and what each of them shows."""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from kdbench.audits.places import shown
from kdbench.harness.faults import FAULTS, audit_ids
from kdbench.harness.injection.mechanism import MECHANISMS
from kdbench.harness.injection.places import places_of
from kdbench.harness.injection.scene import NotApplicableError, Scene
from kdbench.harness.mutation.child import Order, Outcome
from kdbench.harness.mutation.naming import Answer, answer
from kdbench.harness.mutation.processes import TookTooLongError, forked, launch

_GRACE = 30.0
"Seconds beyond its own limit after which a process is ended: it may hang where Python is not asked."
_TAIL = 2000
"Characters of a script's output that are kept."

Status = Literal["injected", "dormant", "not-applicable", "broken"]


class CannotServeError(Exception):
    """The script as it is cannot be a base for faults; the message says what stands in the way."""


@dataclass(frozen=True)
class Row:
    """What came of one fault."""

    fault: str
    status: Status
    why: str = ""
    "Of dormant, not applicable or broken."
    expected: tuple[str, ...] = ()
    "Ids of the audits that should tell."
    found: tuple[str, ...] = ()
    "Ids of the audits that failed, the causes first."
    kdbench: Answer | None = None
    by_script: str | None = None
    "How the script itself tells: an exception, NaN, another exit code."
    by_tests: tuple[str, ...] | None = None
    "Tests that fail with the fault and pass without; None where no tests were asked."
    where: tuple[str, ...] = ()
    seconds: float = 0.0
    cpu: float = 0.0
    "Seconds of a processor's."


@dataclass
class Measured:
    """The whole of a `kdbench mutate`."""

    target: str
    scene: Scene
    rows: list[Row] = field(default_factory=list)
    steps: int = 0
    seconds: float = 0.0
    cpu: float = 0.0
    "Seconds of a processor's that all runs took."
    remarks: list[str] = field(default_factory=list)
    verdict: str = ""
    "Of the script as it is."
    tests: int | None = None
    "Tests of the session that step an optimizer; None for a script."


@dataclass(frozen=True)
class Setting:
    """How the runs are made."""

    base: Order
    workers: int = 2
    share_folder: bool = False


def run_once(order: Order, setting: Setting) -> tuple[Outcome, float]:
    """Make one run in a process of its own; CannotServeError where nothing came back."""
    start = time.monotonic()
    limit = order.max_seconds + _GRACE
    try:
        values, said = launch(forked(setting.workers), asdict(order), limit, setting.share_folder)
    except TookTooLongError:
        raise CannotServeError(
            f"nothing came back within {order.max_seconds:g} seconds (--max-seconds), and the run was ended: give it "
            "more, or let the script do less"
        ) from None
    if values is None:
        raise CannotServeError(f"the run ended without a report:\n{said[-_TAIL:]}")
    if "broken" in values:
        raise CannotServeError(f"kdbench itself failed in this run; please report it:\n{values['broken']}")
    values["answers"] = [tuple(pair) for pair in values["answers"]]
    return replace(Outcome(**values), printed=said[-_TAIL:]), time.monotonic() - start


def judge(fault: str, base: Outcome, seen: Outcome, seconds: float) -> Row:
    """Return what a run with a fault shows beside the run without."""
    expected = expected_of(fault)
    if seen.not_applicable is not None:
        return Row(fault, "not-applicable", seen.not_applicable, expected)
    failed = [f for f in seen.findings if f["status"] == "fail" and f["severity"] in ("error", "warn")]
    known = {f["id"] for f in base.findings if f["status"] == "fail"}
    found = [f["id"] for f in failed if f["id"] not in known]
    by_script = _noticed(base, seen)
    undecided = seen.verdict == "undecided" != base.verdict
    row = Row(
        fault,
        "injected",
        expected=expected,
        found=tuple(found),
        # Where the script ends itself before anything could be seen, nobody needs an audit.
        kdbench=None if seen.error and not seen.distilled else answer(expected, found, undecided),
        by_script=by_script,
        where=tuple(seen.where),
        seconds=round(seconds, 1),
        cpu=round(seen.cpu, 1),
    )
    if not seen.acted:
        return replace(row, status="dormant", why="the place of the fault was not reached in these steps", kdbench=None)
    if seen.digests == base.digests and by_script is None:
        return replace(row, status="dormant", why="it acted, and the weights are the same bit for bit")
    return row


def expected_of(fault: str) -> tuple[str, ...]:
    """Return the ids of the audits that should tell of a fault in a script."""
    own = MECHANISMS[fault].caught_by
    ids = audit_ids()
    return own or tuple(ids[name] for name in FAULTS[fault].caught_by)


def _noticed(base: Outcome, seen: Outcome) -> str | None:
    """Say how the script itself tells of the fault."""
    if seen.error is not None and base.error is None:
        return seen.error.strip().splitlines()[-1][:120]
    if (seen.exit_code or 0) != (base.exit_code or 0):
        return f"exit code {seen.exit_code}"
    if seen.not_finite and not base.not_finite:
        return "the loss is not finite"
    return None


def survey(setting: Setting, told: Callable[[str], None]) -> tuple[Outcome, Scene]:
    """Run the script as it is, twice, and with taps that change nothing; CannotServeError where it cannot serve."""
    from kdbench.harness.injection.survey import first_difference

    told("the script as it is")
    base, seconds = run_once(setting.base, setting)
    refuse(base, setting.base)
    assert base.scene is not None
    told(f"the script as it is: {base.verdict}, {seconds:.0f} s; once more, and with taps that change nothing")
    idle = replace(setting.base, what="idle", scene=base.scene)
    with ThreadPoolExecutor(min(2, setting.workers)) as pool:
        again, untouched = (f.result()[0] for f in [pool.submit(run_once, o, setting) for o in (setting.base, idle)])
    for one in (again, untouched):
        if "seconds" in one.stopped:  # side by side they are slower than the first was
            refuse(replace(base, stopped=one.stopped), setting.base)
    if again.digests != base.digests:
        what = first_difference(base.answers, again.answers) or "the weights after these steps"
        raise CannotServeError(
            f"the script does not repeat: two runs of it differ, first in {what}. A fault cannot be told from chance "
            "there. Set the seeds before it (torch.manual_seed, numpy.random.seed, random.seed, default_rng(SEED))"
        )
    if untouched.digests != base.digests:
        raise CannotServeError("the script's weights change when its calls are only looked at; please report this")
    if [f["id"] for f in untouched.findings if f["status"] == "fail"] != [
        f["id"] for f in base.findings if f["status"] == "fail"
    ]:
        raise CannotServeError("the audits answer otherwise when calls are only looked at; please report this")
    both = sorted({*base.writes} & {*again.writes})  # a temporary file has another name in each run
    return replace(base, writes=both, cpu=base.cpu + again.cpu + untouched.cpu), Scene.from_json(base.scene)


def refuse(base: Outcome, order: Order) -> None:
    """Raise CannotServeError where faults in this script would prove nothing."""
    failed = [f for f in base.findings if f["status"] == "fail" and f["severity"] == "error"]
    if base.error is not None:
        hint = ""
        if "EOF when reading a line" in base.error:
            hint = "\nIt asks for input, and nobody answers here: give what it asks for as an argument"
        elif "CUDA" in base.error or "NVIDIA" in base.error:
            hint = "\nIt needs a GPU that this machine does not have: let it run on the CPU, with less data"
        raise CannotServeError(f"the script does not run as it is:\n{base.error}{hint}")
    if base.exit_code:
        last = f"; the last that it printed:\n{base.printed}" if base.printed else ""
        raise CannotServeError(f"the script as it is ends with exit code {base.exit_code}{last}")
    cut_off = "seconds" in base.stopped
    if cut_off and base.distilled:
        raise CannotServeError(
            f"the script took longer than {order.max_seconds:g} seconds for {order.steps} steps of distillation: give "
            "it more (--max-seconds), or ask for fewer steps (--steps)"
        )
    if not base.distilled:
        seconds = f" within {order.max_seconds:g} seconds (--max-seconds)" if cut_off else ""
        raise CannotServeError(
            f"no distillation was seen in the script{seconds}, so no fault of one can be put into it"
        )
    if base.scene is not None and not base.scene["modules"].get("student"):
        raise CannotServeError(
            "the student is no module that the script calls, so nobody can say whether a fault changed it"
        )
    if failed:
        lines = [_accused(f) for f in failed]
        raise CannotServeError(
            "the script is not clean as it is; fix this first, or accept it with --waive ID=REASON:\n"
            + "\n".join(lines)
        )
    if base.verdict not in ("clean", "undecided"):
        raise CannotServeError(
            f"the audit of the script as it is ends with {base.verdict!r}; see kdbench audit {order.target}"
        )


def _accused(f: dict[str, Any]) -> str:
    """Return a finding with its place and its fix."""
    where = f.get("where")
    place = f" at {shown(where['file'])}:{where['line']}" if where else ""
    return f"{f['id']} {f['name']}{place}: {f['message']}" + (f"; fix: {f['mend']}" if f.get("mend") else "")


def plan(scene: Scene, chosen: Sequence[str]) -> tuple[list[str], list[Row]]:
    """Return the faults that have a place in the script, and a row for each that has none."""
    fit, rows = [], []
    for fault in chosen:
        try:
            MECHANISMS[fault].acts(scene)
        except NotApplicableError as error:
            rows.append(Row(fault, "not-applicable", str(error), expected_of(fault)))
        else:
            fit.append(fault)
    return fit, rows


def planned(fault: str, scene: Scene) -> Row:
    """Return the row of a fault that has a place in the script, and is not run: where it would act."""
    where = places_of(MECHANISMS[fault].acts(scene), scene)
    return Row(fault, "injected", expected=expected_of(fault), where=tuple(where))


def inject(setting: Setting, base: Outcome, chosen: Sequence[str]) -> Iterator[Row]:
    """Run the script once with each fault, several at a time, and yield each row as it comes."""

    def one(fault: str) -> Row:
        order = replace(setting.base, what="fault", fault=fault, scene=base.scene)
        try:
            seen, seconds = run_once(order, setting)
        except CannotServeError as error:
            return Row(fault, "broken", str(error), expected_of(fault))
        return judge(fault, base, seen, seconds)

    yield from side_by_side(one, chosen, setting.workers)


def side_by_side(one: Callable[[str], Row], faults: Sequence[str], workers: int) -> Iterator[Row]:
    """Yield the row of each fault as it comes, several at a time."""
    with ThreadPoolExecutor(workers) as pool:
        tasks = [pool.submit(one, fault) for fault in faults]
        try:
            for done in as_completed(tasks):
                yield done.result()
        except BaseException:
            for task in tasks:
                task.cancel()
            raise
