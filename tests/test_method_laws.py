"""What each method's terms obey whatever they are given: least where it should be, and laws of batch, scale and shift.

A method that is new needs an entry in `LAWS`: a test says so.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from kdbench.kd.methods import METHODS, Answer, Batch, Images, Method, MethodSettings, Soft, build, read_settings
from kdbench.kd.procedure import CANONICAL, Views

quick = settings(max_examples=20, deadline=None, derandomize=True, database=None)
SEEDS = st.integers(0, 2**31)
CHANNELS = (3, 5)
"Of both networks' stages, so that one can answer as the other does."


def scaled(by):
    return lambda answer, _: Answer(answer.logits * by, answer.features)


def through(projectors, instead):
    """Return what makes a method's student side the identity."""

    def agree(answer, method):
        setattr(method, projectors, instead)
        return answer

    return agree


@dataclass(frozen=True)
class Law:
    """What holds of a method's terms."""

    least: dict[str, float | None] = field(default_factory=dict)
    "Terms that nothing makes smaller than the student at `best`, with their value there (None: some value)."
    best: Callable[[Answer, Method], Answer] = lambda answer, method: answer
    "The student's answer that agrees with the teacher's."
    above: tuple[str, ...] = ()
    "Terms that are never below zero."
    doubled: dict[str, float] | None = None
    "By what each term is multiplied when each image stands in the batch twice; None where it is not a number."
    invariant: tuple[str, ...] = ()
    "Of shift and scale (of logits), and size (of features): what changes nothing."
    softened: tuple[str, ...] = ()
    "Terms for which softening T times the logits by T gives T^2 times what T = 1 gives."
    any_order: bool = True
    "Whether the order of the images in the batch changes nothing."
    smallest: int = 1
    "Images in a batch, at least."
    scales: tuple[float, ...] = (0.1, 3.0, 20.0)
    "Of logits, at which it is least where it should be."


KL = {"kd": 0.0}
LAWS = {
    "logit": Law(KL, above=("kd",), doubled={"kd": 1}, invariant=("shift",), softened=("kd",)),
    "dkd": Law(
        {"tckd": 0.0, "nckd": 0.0},
        above=("tckd", "nckd"),
        doubled={"tckd": 1, "nckd": 1},
        invariant=("shift",),
        softened=("tckd", "nckd"),
    ),
    "dist": Law(
        {"inter": 0.0, "intra": 0.0},
        above=("inter", "intra"),
        doubled={"inter": 1, "intra": 1},
        invariant=("shift",),
        softened=("inter", "intra"),
        scales=(0.1, 3.0),  # what is sure of everything correlates with nothing
    ),
    "ls": Law(KL, above=("kd",), doubled={"kd": 1}, invariant=("shift", "scale")),
    "ttm": Law(KL, scaled(0.1), above=("kd",), doubled={"kd": 1}, invariant=("shift",)),
    "wttm": Law(KL, scaled(0.1), above=("kd",), doubled={"kd": 1}, invariant=("shift",)),
    "nkd": Law({"rest": None}, above=("target", "rest"), doubled={"target": 1, "rest": 1}, invariant=("shift",)),
    "mlkd": Law(
        {"instance": 0.0, "batch": 0.0, "class": 0.0},
        above=("instance", "batch", "class"),
        doubled={"instance": 1, "batch": 2, "class": 4},
        invariant=("shift",),
    ),
    "feature": Law(above=("kd",), doubled={"kd": 1}),
    "fitnet": Law({"hint": 0.0}, through("regressor", nn.Identity()), above=("hint",), doubled={"hint": 1}, smallest=2),
    "at": Law({"at": 0.0}, above=("at",), doubled={"at": 1}, invariant=("size",)),
    "sp": Law({"sp": 0.0}, above=("sp",), doubled={"sp": 0.5}, invariant=("size",)),
    "rkd": Law(
        {"distance": 0.0, "angle": 0.0},
        above=("distance", "angle"),
        doubled={"distance": 1, "angle": 1},
        invariant=("size",),
    ),
    "pkt": Law({"pkt": 0.0}, above=("pkt",), doubled={"pkt": 0.5}, invariant=("size",)),
    "vid": Law(doubled={"vid": 1}),
    "reviewkd": Law(above=("review",), doubled={"review": 1}, smallest=2),
    "crd": Law(above=("crd",), any_order=False),  # an image's negatives are drawn for its place in the batch
}
DISTILLING = [name for name in METHODS if METHODS[name].needs_teacher]
"Here those that come with the project: a test file is collected before another registers a method of its own."


def made(name, classes=4, **changed):
    """Return a method with its own defaults, weights of one where there is none, and a training set of 12 images."""
    kind = METHODS[name]
    lacking = {word: 1.0 for word in kind.Settings.names() if word not in kind.Settings.defaults()}
    few = {"negatives": 20} if name == "crd" else {}
    images = Images(torch.arange(12), torch.arange(12) % classes)
    values = read_settings(name, {**lacking, **few, **changed})
    return build(name, CHANNELS, CHANNELS, values, CANONICAL, torch.Generator().manual_seed(0), images)


def answer(rng, n, classes=4, scale=3.0, size=4):
    """Return an answer with the features of two stages after their ReLU."""
    features = (
        torch.randn(n, c, size // k, size // k, generator=rng).relu() for c, k in ((CHANNELS[0], 1), (CHANNELS[1], 2))
    )
    return Answer(scale * torch.randn(n, classes, generator=rng), tuple(features))


def drawn(seed, n, classes=4, **more):
    rng = torch.Generator().manual_seed(seed)
    pair = [answer(rng, n, classes, **more) for _ in range(2)]
    return *pair, torch.randint(0, classes, (n,), generator=rng)


def terms(method, student, teacher, labels):
    ids = torch.arange(len(labels))
    found = method(student, teacher, Batch(method.needs, labels, ids, Views(None, None)))
    return {name: value.detach().double().item() for name, value in found.items()}


def rows(found, index):
    return Answer(found.logits[index], tuple(f[index] for f in found.features))


def near(a, b, rel=1e-4, floor=1e-5):
    assert a.keys() == b.keys()
    for name in a:
        assert a[name] == pytest.approx(b[name], rel=rel, abs=floor), name


def test_every_method_has_its_laws():
    assert {*LAWS} == {name for name in DISTILLING if METHODS[name].digest is None}
    for name, law in LAWS.items():
        assert {*law.least, *law.above, *law.softened, *(law.doubled or {})} <= {*METHODS[name].Settings.terms()}


@pytest.mark.parametrize("name", LAWS)
@quick
@given(seed=SEEDS, n=st.integers(2, 8), at=st.integers(0, 2))
def test_a_term_is_least_where_student_and_teacher_agree(name, seed, n, at):
    law, method = LAWS[name], made(name)
    student, teacher, labels = drawn(seed, n, scale=law.scales[at % len(law.scales)])
    apart = terms(method, student, teacher, labels)
    assert all(apart[term] >= -1e-5 for term in law.above)
    agreed = terms(method, law.best(teacher, method), teacher, labels)
    for term, value in law.least.items():
        assert value is None or agreed[term] == pytest.approx(value, abs=2e-5)
        assert apart[term] >= agreed[term] - 2e-5


@pytest.mark.parametrize("name", [name for name, law in LAWS.items() if any(v == 0 for v in law.least.values())])
def test_where_they_differ_it_is_more(name):
    """So that a term that is zero whatever it is given does not pass for least."""
    found = terms(made(name), *drawn(0, 6))
    assert all(found[term] > 1e-6 for term in LAWS[name].least)


@pytest.mark.parametrize("name", [name for name, law in LAWS.items() if law.any_order])
@quick
@given(seed=SEEDS, n=st.integers(2, 8))
def test_the_order_of_the_batch_changes_nothing(name, seed, n):
    student, teacher, labels = drawn(seed, n)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    found = terms(made(name), student, teacher, labels)
    near(found, terms(made(name), rows(student, order), rows(teacher, order), labels[order]))


def test_an_order_of_one_side_alone_changes_something():
    for name, law in LAWS.items():
        student, teacher, labels = drawn(1, 6)
        moved = terms(made(name), rows(student, torch.arange(6).roll(1)), teacher, labels)
        assert any(abs(moved[t] - v) > 1e-6 for t, v in terms(made(name), student, teacher, labels).items()), (
            name,
            law,
        )


@pytest.mark.parametrize("name", [name for name, law in LAWS.items() if law.doubled])
@quick
@given(seed=SEEDS, n=st.integers(3, 6))
def test_a_batch_with_every_image_twice(name, seed, n):
    student, teacher, labels = drawn(seed, n)
    twice = torch.arange(n).repeat(2)
    once = terms(made(name), student, teacher, labels)
    again = terms(made(name), rows(student, twice), rows(teacher, twice), labels[twice])
    near(again, {term: LAWS[name].doubled[term] * value for term, value in once.items()}, rel=1e-3)


@pytest.mark.parametrize(("name", "what"), [(name, what) for name, law in LAWS.items() for what in law.invariant])
@quick
@given(seed=SEEDS, by=st.floats(0.25, 8.0))
def test_what_changes_nothing(name, what, seed, by):
    student, teacher, labels = drawn(seed, 5)
    shifts = by * torch.randn(5, 1, generator=torch.Generator().manual_seed(seed))
    changed = {
        "shift": lambda a: Answer(a.logits + shifts, a.features),
        "scale": lambda a: Answer(a.logits * by, a.features),
        "size": lambda a: Answer(a.logits, tuple(f * by for f in a.features)),
    }[what]
    found = terms(made(name), student, teacher, labels)
    near(terms(made(name), changed(student), teacher, labels), found, rel=1e-3)
    near(terms(made(name), student, changed(teacher), labels), found, rel=1e-3)


@pytest.mark.parametrize("name", [name for name, law in LAWS.items() if law.softened])
@quick
@given(seed=SEEDS, t=st.floats(0.5, 20.0))
def test_softening_t_times_the_logits_is_t_squared_times_the_term(name, seed, t):
    student, teacher, labels = drawn(seed, 5)
    plain = terms(made(name, temperature=1.0), student, teacher, labels)
    hot = (Answer(a.logits * t, a.features) for a in (student, teacher))
    found = terms(made(name, temperature=float(t)), *hot, labels)
    near({k: v / t**2 for k, v in found.items()}, plain, rel=1e-3)


@pytest.mark.parametrize("name", LAWS)
@quick
@given(
    seed=SEEDS,
    classes=st.sampled_from([2, 7]),
    n=st.sampled_from([1, 2, 5]),
    extreme=st.sampled_from(["margins", "equal", "none"]),
    temperature=st.sampled_from([1.0, 20.0]),
    half=st.booleans(),
)
def test_value_and_gradient_are_numbers(name, seed, classes, n, extreme, temperature, half):
    """At margins of 500, at equal logits and dead features, for two classes, for one image, in bf16."""
    hot = {"temperature": temperature} if "temperature" in METHODS[name].Settings.names() and name != "crd" else {}
    method = made(name, classes, **hot)
    student, teacher, labels = drawn(seed, max(n, LAWS[name].smallest), classes, size=2)
    factor = {"margins": 250.0, "equal": 0.0, "none": 1.0}[extreme]
    if extreme == "margins":  # the student is as sure of another class
        student, teacher = (Answer(a.logits.sign(), a.features) for a in (student, teacher))
    student, teacher = (Answer(a.logits * factor, tuple(f * factor for f in a.features)) for a in (student, teacher))
    if half:
        student, teacher = (
            Answer(a.logits.bfloat16(), tuple(f.bfloat16() for f in a.features)) for a in (student, teacher)
        )
    leaves = [student.logits.detach().requires_grad_(), *(f.detach().requires_grad_() for f in student.features)]
    ids = torch.arange(len(labels))
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
        found = method(
            Answer(leaves[0], tuple(leaves[1:])), teacher, Batch(method.needs, labels, ids, Views(None, None))
        )
    assert all(math.isfinite(value.item()) and value.dtype == torch.float32 for value in found.values()), found
    sum(found.values()).backward()
    for leaf in [*leaves, *method.parameters()]:
        assert leaf.grad is None or leaf.grad.isfinite().all()


# -- what trains


def trained(loss):
    """Return the tensors that a loss's backward gives a gradient to."""
    seen, todo, leaves = set(), [loss.grad_fn], []
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            leaves.append(node.variable)
        todo += [after for after, _ in node.next_functions]
    return leaves


def unregistered(method):
    """Return the shapes of what a method trains and does not register as its parameters."""
    student, teacher, labels = drawn(0, 6)
    mine = [student.logits.requires_grad_(), *(f.requires_grad_() for f in student.features)]
    found = method(student, teacher, Batch(method.needs, labels, torch.arange(6), Views(None, None)))
    known = {id(p) for p in [*mine, *method.parameters()]}
    return [tuple(leaf.shape) for leaf in trained(sum(found.values())) if id(leaf) not in known]


@pytest.mark.parametrize("name", LAWS)
def test_what_trains_is_registered(name):
    assert unregistered(made(name)) == []


def test_a_parameter_in_a_plain_list_is_noticed():
    """As the variances of VID in megvii-research/mdistiller, which no optimizer moves."""

    class Listed(Method):
        name, needs, seams, soft = "listed", (), (), Soft.NONE

        def build(self, student, teacher):
            self.scales = [nn.Parameter(torch.ones(student[0]))]

        def forward(self, student, teacher, batch):
            return {"kd": (self.scales[0][:, None, None] * student.features[0]).mean()}

    assert unregistered(Listed(MethodSettings(), CANONICAL, CHANNELS, CHANNELS)) == [(CHANNELS[0],)]


@pytest.mark.parametrize("name", [name for name in LAWS if METHODS[name].has_projectors])
def test_what_trains_is_optimised_clipped_moved_saved_and_restored(name, prepare, tmp_path):
    import safetensors.torch

    from kdbench.kd import train
    from kdbench.kd.teacher import save_checkpoint

    training = prepare(name, lr=0.05)
    mine = {id(p) for p in training.method.parameters()}
    assert mine <= {id(p) for group in training.optimizer.param_groups for p in group["params"]}
    assert mine <= {id(p) for group in CANONICAL.clipped(training.student, training.method) for p in group}
    before = [p.detach().clone() for p in training.method.parameters()]
    next(train.epochs(training))
    assert not any(map(torch.equal, before, training.method.parameters()))
    other = prepare(name, seed=training.seed + 1)
    other.load_state_dict(training.state_dict())
    kept = training.method.state_dict()
    assert kept and all(torch.equal(value, other.method.state_dict()[key]) for key, value in kept.items())
    save_checkpoint(training.method, tmp_path / "method.safetensors")
    again = prepare(name, seed=training.seed + 1).method
    again.load_state_dict(safetensors.torch.load_file(tmp_path / "method.safetensors"))
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in kept.items())
