"""The items of the queue, in order of value."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from benchmarks.gpu.call import Call, other_teachers
from benchmarks.gpu.stacks import STACKS
from kdbench.harness.plan.preset import Preset, load_preset
from kdbench.harness.records.record import Result
from kdbench.harness.study import Ready, Request, carry_out, prepare, summary

EPOCHS, TEACHER_EPOCHS = 20, 30
"Of 45,000 images; the paper has 100 and 200. Shortened, so that a student takes a minute."
SEEDS = (0, 1, 2, 3, 4)
FIRST_GUESS = 150.0
"Seconds that a trial may take before one has been seen."


@dataclass(frozen=True)
class Item:
    """One item: `run` works on it for as long as the call lasts and says whether nothing is left of it."""

    name: str
    title: str
    run: Callable[[Call], bool]


_QUIET = ("-q", "-p", "no:cacheprovider", "--durations=10")


def correctness(call: Call) -> bool:
    """Run the tests for a GPU on this machine's versions."""
    size = ["-k", "by_hand or cropped"] if call.toy else []
    noted = f"--junitxml={call.results / 'correctness' / 'tests.xml'}"
    files = ["tests/test_cuda.py", "tests/test_cuda_script.py"]
    return call.command(
        "correctness", "cuda", ["-m", "pytest", *files, *_QUIET, *size, noted, "-n", "1" if call.toy else "8"],
        KDBENCH_TEST_DEVICE=call.device,
    )  # fmt: skip


def suite(call: Call) -> bool:
    """Run the whole suite, most of it on the processor: what this machine's versions break."""
    whole = (
        ["tests/test_losses.py"]
        if call.toy
        else ["tests", "-n", "auto", "--dist", "loadfile", "--no-loadscope-reorder"]
    )
    return call.command("suite", "suite", ["-m", "pytest", *_QUIET, *whole])


def throughput(call: Call) -> bool:
    """Time every stack of the step, several trials at once, and the benchmark suite on the device."""
    sizes = ["--toy"] if call.toy else []
    parts = [
        (f"{method}-{stack}", ["-m", "benchmarks.gpu.stacks", "step", stack, method])
        for method in ("logit", "feature")
        for stack in (list(STACKS)[:1] if call.toy else STACKS)
    ]
    parts += [("at-once", ["-m", "benchmarks.gpu.stacks", "at-once"])]
    done = [call.command("throughput", name, [*args, "--device", call.device, *sizes]) for name, args in parts]
    report = call.results / "throughput" / "benchmarks.json"
    which = "benchmarks/test_step.py::test_step[one-thread-fp32-logit]" if call.toy else "benchmarks"
    benchmarks = ["-m", "pytest", which, "--benchmark-only", f"--benchmark-json={report}", "-q"]
    benchmarks += ["--device", call.device, *sizes]
    return all(done) and call.command("throughput", "suite", benchmarks, least=0 if call.toy else 300)


def _preset(call: Call, pairs: Sequence[str], methods: Sequence[str]) -> Preset:
    if call.toy:
        quick = load_preset("quick")
        recipe = replace(quick.recipe, epochs=1, base_width=4, train_size=64, val_size=32, test_stride=16)
        return replace(quick, pairs=tuple(pairs), methods=tuple(methods), recipe=recipe, teacher={}, seeds=(0,))
    paper = load_preset("paper")
    recipe = replace(paper.recipe, epochs=EPOCHS, precision="bf16")
    teacher = {**paper.teacher, "epochs": TEACHER_EPOCHS}
    return replace(paper, pairs=tuple(pairs), methods=tuple(methods), recipe=recipe, teacher=teacher, seeds=SEEDS)


def _study(
    call: Call,
    item: str,
    pairs: Sequence[str],
    methods: Sequence[str],
    faults: Sequence[str | None],
    *,
    students: bool = True,
) -> bool:
    """Run the trials of a study, teachers first and then seed by seed, while there is time; sum up what is there."""
    dataset = "digits" if call.images is None else "folder"
    request = Request(
        _preset(call, pairs, methods), faults, False, dataset, call.images, call.device, 1, call.state / "studies",
        None, None, controls=False,
    )  # fmt: skip
    ready = prepare(request)
    seen = _seconds(ready)

    def may_start(key: str) -> bool:
        return call.left() > 1.3 * max(seen, default=FIRST_GUESS)

    def tell(key: str, result: Result | None, epochs: int) -> None:
        if result is not None:
            spec = ready.plan.trials[key]
            took = _took(result)
            seen.extend([took] if took is not None else [])
            score = f"{result.metrics.test_accuracy:.2f}%" if result.metrics else result.reason
            arm = f"{spec.arch} {spec.method} {spec.fault or 'corrected'} seed {spec.seed}"
            call.say(f"  {arm}: {result.status}, {score}" + (f", {took:.0f} s" if took is not None else ""))

    teachers = set(ready.plan.teachers.values())
    carry_out(ready, tell, lambda key: key in teachers and may_start(key))
    for key in other_teachers(ready.folder):
        call.say(f"  teacher {key} came out otherwise than on the earlier machine: its students are trained anew")
    left = set(prepare(request).todo)
    if not students or teachers & left:
        return not teachers & left
    ready = prepare(request)
    order = sorted(ready.plan.trials.items(), key=lambda entry: entry[1].seed)
    ready.plan.trials = dict(order)
    outcome = carry_out(ready, tell, may_start)
    call.write(item, "study", summary(ready, outcome).as_json())
    call.write(item, "seconds", {"median": statistics.median(seen) if seen else None, "trials": len(seen)})
    return not prepare(request).todo


def _seconds(ready: Ready) -> list[float]:
    """Return what the finished trials of the study took, those of this machine and others alike."""
    results = [ready.folder.trial(key).result() for key in ready.plan.trials if key not in ready.todo]
    return [took for result in results if result is not None and (took := _took(result)) is not None]


def _took(result: Result) -> float | None:
    """Return a trial's seconds; None where its process died and could not say."""
    seconds = result.times.get("seconds")
    return float(seconds) if seconds is not None else None


def teachers(call: Call) -> bool:
    """Train the teachers of the pairs to come."""
    return _study(call, "teachers", ["r50-r18", "r34-r18"], ["logit"], [None], students=False)


def pair(call: Call) -> bool:
    """Train R50 -> R18 with each method, the projector clipped and not, the teacher trained and random."""
    both = "projector-unclipped+random-teacher"
    arms = [None, "projector-unclipped", "random-teacher", both]
    return _study(call, "r50-r18", ["r50-r18"], ["baseline", "logit", "feature"], arms)


def stem(call: Call) -> bool:
    """Train R50 -> R18 with an ImageNet stem."""
    return _study(call, "stem", ["r50-r18"], ["baseline", "logit", "feature"], [None, "imagenet-stem"])


def pairs(call: Call) -> bool:
    """Train the other pairs of the paper."""
    arms = [None, "projector-unclipped"]
    return _study(call, "pairs", ["r34-r18", "r50-r34"], ["baseline", "logit", "feature"], arms)


ITEMS = (
    Item("correctness", "tests and audits on the device, equal bits from equal seeds", correctness),
    Item("throughput", "images a second of every stack, share of the roof, memory, several trials at once", throughput),
    Item("teachers", "R50 and R34 at full width, shortened schedule", teachers),
    Item("r50-r18", "baseline, Logit-KD, Feature-KD corrected and unclipped, also with a random teacher", pair),
    Item("stem", "the ImageNet stem", stem),
    Item("pairs", "R34 -> R18 and R50 -> R34", pairs),
    Item("suite", "the whole suite on this machine's versions", suite),
)
