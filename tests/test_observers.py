"""Each observer by itself, on a tiny training: a case in which it must speak, and one in which it must not."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.audits.infer.answers import Answers
from kdbench.audits.infer.batches import Batches, relation
from kdbench.audits.infer.gradients import Gradients
from kdbench.audits.infer.modes import Modes
from kdbench.audits.infer.names import Names
from kdbench.audits.infer.observer import Known, Observer
from kdbench.audits.infer.parameters import Parameters
from kdbench.audits.infer.players import Players
from kdbench.audits.infer.provenance import provenance
from kdbench.audits.infer.roles import Declared, Group, cast
from kdbench.audits.infer.stems import Stems
from kdbench.audits.infer.stored import Stored
from kdbench.audits.infer.teacher import TeacherState
from kdbench.audits.infer.terms import Terms
from kdbench.audits.observe.loads import Loads
from kdbench.audits.observe.recorder import Recorder
from kdbench.audits.observe.torch_internals import mode_depth
from kdbench.audits.observe.windows import ModuleCall, RawWindow
from kdbench.audits.trace import Declaration, Sight, Trace

SIZE, CLASSES = 16, 5


class Scene:
    """A student and a teacher, and one observer that is shown their windows; the roles are the declared ones."""

    def __init__(self, student: nn.Module, teacher: nn.Module | None = None, *, script: bool = False) -> None:
        self.student, self.teacher = student, teacher
        self.trace = Trace(Declaration(student, teacher), script=script)
        self.declared = Declared(student, teacher)
        self.windows = Recorder(lambda raw: self.window(raw), self._answer, self._raise, lambda: True)
        self.taint = self.windows.taint
        self.known = Known(started=True)
        self.names = Names(self.trace, self.taint, self.known)
        self.observer: Observer = Observer()

    @property
    def sights(self) -> list[Sight]:
        return self.trace.losses.sights

    def _raise(self, error: BaseException) -> None:
        raise error

    def _answer(self, call: ModuleCall) -> None:
        self.observer.answered(self.windows.raw, call)

    def window(self, raw: RawWindow) -> None:
        found = cast(raw, self.taint, self.declared, [])
        for known, groups in ((self.known.students, found.students), (self.known.teachers, found.teachers)):
            if not known:
                known += [Group(g.mask, g.module) for g in groups]
        sight = Sight(raw.number, raw.where)
        self.observer.window(raw, found, sight)
        self.sights.append(sight)

    def watch(self, observer: Observer, *losses: Callable[[], Tensor], after: Callable[[], Any] = int) -> Sight:
        """Compute each loss and go back from it under the observer's eyes; return what was noted of the last."""
        self.observer = observer
        self.windows.open()
        for loss in losses:
            value = loss()
            self.windows.before_backward(value)
            value.backward()
            self.windows.after_backward()
            after()
        self.windows.close()
        return self.sights[-1]


def body(*extra: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), *extra, nn.Linear(8, CLASSES))


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    torch.manual_seed(0)
    depth = mode_depth()
    yield
    assert mode_depth() == depth  # no mode is left behind


@pytest.fixture
def rows() -> Tensor:
    return torch.randn(SIZE, 4)


@pytest.fixture
def labels() -> Tensor:
    return torch.arange(SIZE) * 3 % CLASSES


def kl(student: Tensor, teacher: Tensor, temperature: float = 4.0) -> Tensor:
    log_p, q = (student / temperature).log_softmax(1), (teacher / temperature).softmax(1)
    return F.kl_div(log_p, q, reduction="batchmean") * temperature**2


def distil(scene: Scene, rows: Tensor, others: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
    """The student's loss on `rows` where the teacher is shown `others`."""
    assert scene.teacher is not None
    with torch.no_grad():
        taught = scene.teacher(rows if others is None else others)
    logits = scene.student(rows)
    return kl(logits, taught) + (F.cross_entropy(logits, labels) if labels is not None else 0)


# -- players


@pytest.mark.parametrize("used", [True, False])
def test_players_tell_a_distillation_from_a_teacher_that_is_asked_in_vain(rows, labels, used):
    scene = Scene(body(), body())
    players = Players(scene.trace, scene.taint, Known(), scene.names, scene.declared, Stored(scene.trace, scene.taint))
    found = []

    def window(raw: RawWindow) -> None:
        found.append(players.cast(raw))

    scene.window = window

    def loss() -> Tensor:
        with torch.no_grad():
            taught = scene.teacher(rows)
        logits = scene.student(rows)
        return F.cross_entropy(logits, labels) + (kl(logits, taught) if used else 0)

    scene.windows.open()
    value = loss()
    scene.windows.before_backward(value)
    scene.windows.after_backward()
    scene.windows.close()
    losses = scene.trace.losses
    assert losses.windows_seen == 1 and "cross_entropy" in losses.functions
    assert (found[0] is not None, losses.idle_windows) == ((True, 0) if used else (False, 1))
    if used:
        assert [g.module for g in found[0].teachers] == [scene.teacher]


@pytest.mark.parametrize("labelled", [True, False])
def test_players_say_whether_the_teacher_learns_from_labels_too(labelled):
    scene = Scene(body(), body())
    known = scene.known
    known.students.append(Group(scene.taint.mask(scene.student.parameters()), scene.student))
    known.teachers.append(Group(scene.taint.mask(scene.teacher.parameters()), scene.teacher))
    known.labelled = known.teachers[0].mask if labelled else known.students[0].mask
    Players(scene.trace, scene.taint, known, scene.names, scene.declared, Stored(scene.trace, scene.taint)).finish([])
    assert scene.trace.peers is labelled
    assert set(scene.trace.roles) == {"student", "teacher", "projectors"} and not scene.trace.roles["projectors"]


# -- stored answers


@pytest.mark.parametrize("shift", [0, 1])
def test_stored_answers_are_recognised_and_rows_of_other_samples_counted(rows, shift):
    scene = Scene(body())
    teacher = body().eval()
    observer = Stored(scene.trace, scene.taint)
    table: list[Tensor] = []

    def store() -> Tensor:
        with torch.no_grad():
            table.append(torch.from_numpy(teacher(rows).numpy().copy()))  # from a file: nothing is known of it
        return F.cross_entropy(scene.student(rows), torch.zeros(SIZE, dtype=torch.long))

    sight = scene.watch(observer, store, lambda: kl(scene.student(rows), table[0].roll(shift, 0)))
    assert sight.cached_rows == (SIZE, SIZE if shift else 0)


def test_stored_answers_of_nobody_have_no_teacher(rows):
    scene = Scene(body())
    noise = torch.randn(SIZE, CLASSES)
    sight = scene.watch(Stored(scene.trace, scene.taint), lambda: kl(scene.student(rows), noise))
    assert sight.cached_rows is None


# -- the teacher's state


def teacher_state(scene: Scene) -> TeacherState:
    return TeacherState(scene.trace, scene.taint, scene.known, scene.names, Loads())


def test_a_teacher_that_moves_is_told_of(rows):
    scene = Scene(body(), body())
    observer = teacher_state(scene)
    scene.watch(observer, lambda: distil(scene, rows), after=lambda: scene.teacher[0].bias.data.add_(1))
    scene.known.moved[scene.teacher[0].bias] = True
    observer.finish([])
    change = scene.trace.teacher.change
    assert [name.rpartition(".")[2] for name in change.params] == ["bias"] and not change.buffers
    assert change.by_optimizer and len(scene.trace.teacher.stepped) == 1 and change.average_rate is None


def test_a_teacher_that_stays_is_not(rows):
    scene = Scene(body(), body())
    observer = teacher_state(scene)
    sight = scene.watch(observer, lambda: distil(scene, rows))
    observer.finish([])
    change = scene.trace.teacher.change
    assert not change.params and not change.buffers and not change.by_optimizer and not scene.trace.teacher.stepped
    assert not sight.teacher_leaves and not sight.teacher_grad
    assert scene.trace.teacher.loaded.covered == 0  # and it came from no file


def test_a_teacher_that_follows_its_student_is_a_moving_average(rows):
    scene = Scene(body(), body())
    observer = teacher_state(scene)

    def follow() -> None:
        with torch.no_grad():
            for t, s in zip(scene.teacher.parameters(), scene.student.parameters(), strict=True):
                t.lerp_(s, 0.25)

    scene.watch(observer, *[lambda: distil(scene, rows)] * 3, after=follow)
    observer.finish([])
    assert scene.trace.teacher.change.average_rate == pytest.approx(0.25, abs=1e-3)


def test_a_gradient_that_reaches_the_teacher_is_seen(rows):
    scene = Scene(body(), body())
    sight = scene.watch(teacher_state(scene), lambda: kl(scene.student(rows), scene.teacher(rows)))
    assert sight.teacher_grad and len(sight.teacher_leaves) == 4


@pytest.mark.parametrize("same", [True, False])
def test_provenance_counts_what_equals_the_declared_weights(same):
    teacher, other = body(), body()
    weights = {name: value.clone() for name, value in (teacher if same else other).state_dict().items()}
    found = provenance(teacher, weights)
    assert found.equal == (found.total if same else 0) and bool(found.differing) is not same
    with pytest.raises(ValueError, match="'epoch' is a int, no tensor"):
        provenance(teacher, {**weights, "epoch": 3})


# -- parameters


def stepped(scene: Scene, optimizer: torch.optim.Optimizer, rows: Tensor, steps: int = 3) -> Parameters:
    observer = Parameters(scene.trace, scene.taint, scene.known, scene.names)

    def step() -> None:
        optimizer.step()
        observer.step(optimizer, [p for g in optimizer.param_groups for p in g["params"] if p.grad is not None])
        optimizer.zero_grad()

    scene.watch(observer, *[lambda: distil(scene, rows)] * steps, after=step)
    observer.finish([optimizer])
    return observer


def test_a_parameter_in_no_optimizer_and_one_that_stands_still_are_told_of(rows):
    scene = Scene(body(), body())
    still = scene.student[0].weight
    held = [still, scene.student[1].weight]
    optimizer = torch.optim.SGD(held, lr=0.1)
    optimizer.register_step_pre_hook(lambda *args: setattr(scene, "before", still.detach().clone()))
    optimizer.register_step_post_hook(lambda *args: still.data.copy_(scene.before))
    stepped(scene, optimizer, rows)
    updates = scene.trace.updates
    assert sorted(leaf.name.rpartition(".")[2] for leaf in updates.leaves if not leaf.optimised) == ["bias", "bias"]
    assert [name.rpartition(".")[2] for name in updates.ineffective] == ["weight"] and len(updates.lr_rows) == 3


def test_a_training_of_all_parameters_is_left_alone(rows):
    scene = Scene(body(), body())
    optimizer = torch.optim.SGD(scene.student.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    stepped(scene, optimizer, rows)
    updates = scene.trace.updates
    assert len(updates.leaves) == 4 and all(leaf.optimised for leaf in updates.leaves)
    assert updates.stale == [] and updates.frozen == [] and updates.ineffective == []
    assert updates.optimizers == ["SGD"] and updates.scheduled_groups == len(schedule.base_lrs) == 1
    assert not scene.sights[0].student_frozen and scene.sights[0].micro == 1


def test_a_parameter_of_a_network_that_is_gone_is_stale(rows):
    scene = Scene(body(), body())
    gone = nn.Parameter(torch.zeros(3, 7))
    stepped(scene, torch.optim.SGD([*scene.student.parameters(), gone], lr=0.1), rows)
    assert scene.trace.updates.stale == ["shape (3, 7)"]


# -- modes


@pytest.mark.parametrize("training", [True, False])
def test_modes_tell_the_teachers_layers_in_training_mode(rows, training):
    scene = Scene(body(), body(nn.Dropout(0.5)).train(training))
    sight = scene.watch(Modes(scene.trace), lambda: distil(scene, rows))
    assert sight.teacher_training == (["1 (Dropout)"] if training else [])


@pytest.mark.parametrize("training", [True, False])
def test_modes_tell_a_student_in_evaluation_mode(rows, training):
    scene = Scene(body(nn.BatchNorm1d(8)).train(training), body())
    modes = Modes(scene.trace)
    sight = scene.watch(modes, lambda: distil(scene, rows))
    modes.backward([training], 7)
    assert sight.student_is_moody and sight.student_eval is not training
    assert scene.trace.losses.eval_steps == ([] if training else [7])


# -- stems


@pytest.mark.parametrize("script", [True, False])
def test_stems_of_a_script_are_taken_down_and_declared_ones_left_to_their_calls(script):
    images = torch.randn(SIZE, 3, 8, 8)

    def net() -> nn.Sequential:
        stem = (nn.Conv2d(3, 4, 7, 2, 3), nn.MaxPool2d(3, 2, 1))
        return nn.Sequential(*stem, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, CLASSES))

    scene = Scene(net(), net(), script=script)
    scene.watch(Stems(scene.trace, scene.taint), lambda: distil(scene, images))
    found = {
        role: [(s.kind, s.stride, s.input_size) for s in calls] for role, calls in scene.trace.data.spatial.items()
    }
    stem = [("conv", 2, (8, 8)), ("pool", 2, (4, 4))]
    assert found == ({"student": stem, "teacher": stem} if script else {})


# -- gradients


@pytest.mark.parametrize("script", [True, False])
def test_gradients_are_explained_and_a_scripts_teacher_is_held_against_its_labels(rows, labels, script):
    scene = Scene(body(), body(), script=script)
    sight = scene.watch(Gradients(scene.trace, 4), lambda: distil(scene, rows, labels=labels))
    (e,) = sight.explanations
    assert e.form == "forward" and e.temperature == pytest.approx((4.0, 4.0), rel=1e-2)
    hits = scene.trace.teacher.hits
    assert (hits is not None) is script
    if script:
        with torch.no_grad():
            right = (scene.teacher(rows).argmax(1) == labels).sum()
        assert hits.right == right and hits.by_class.tolist() == labels.bincount().tolist()


def test_gradients_of_later_windows_are_not_explained_again(rows):
    scene = Scene(body(), body())
    observer = Gradients(scene.trace, 4)
    scene.watch(observer, *[lambda: distil(scene, rows)] * 4)
    assert [bool(s.explanations) for s in scene.sights] == [True, True, True, False]


# -- batches


def test_batches_in_another_order_are_told_of_and_equal_ones_are_the_same(rows):
    scene = Scene(body(), body())
    batches = Batches(scene.trace, scene.taint, scene.windows.lineage)
    sight = scene.watch(batches, lambda: distil(scene, rows), lambda: distil(scene, rows, rows.flip(0)))
    assert scene.sights[0].inputs.relation == "same"
    assert sight.inputs.relation == "permuted" and sight.inputs.permutation == list(range(SIZE))[::-1]


@pytest.mark.parametrize("factor", [1.0, 3.0])
def test_batches_unlike_those_that_the_teacher_learned_on_are_told_of(rows, labels, factor):
    scene = Scene(body(), body())
    batches = Batches(scene.trace, scene.taint, scene.windows.lineage)
    sight = scene.watch(
        batches, lambda: F.cross_entropy(scene.teacher(rows), labels), lambda: distil(scene, rows * factor)
    )
    assert sight.inputs.relation == ("same" if factor == 1.0 else "untrained")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda x: x.clone(), "same"),
        (lambda x: x.flip(3), "flipped"),
        (lambda x: 2 * x - 1, "affine"),
        (lambda x: x.square(), "differ"),
        (lambda x: x[:, :2], "shapes"),
    ],
)
def test_two_batches_of_images_are_related(change, says):
    images = torch.randn(SIZE, 3, 8, 8)
    assert relation(images, change(images)).relation == says


# -- terms


def test_terms_say_what_went_into_them(rows):
    scene = Scene(body(), body())
    sight = scene.watch(Terms(scene.trace, scene.taint, scene.names), lambda: distil(scene, rows))
    (term,) = sight.terms
    assert (term.kind, term.name, term.reaches_student, term.swapped) == ("soft", "kl_div", True, False)
    assert term.weight == pytest.approx(16.0) and term.target_sum == pytest.approx(1.0)
    assert not sight.probabilities and not sight.asked_twice and sight.overwritten is None


def test_terms_say_what_is_wrong_with_them(rows, labels):
    scene = Scene(body(), body())

    def loss() -> Tensor:
        with torch.no_grad():
            taught = scene.teacher(rows)
        logits = scene.student(rows)
        cut = F.kl_div(logits.detach(), taught.softmax(1))  # from its graph, and no log-probabilities
        return cut + F.cross_entropy(logits.softmax(1), labels)

    sight = scene.watch(Terms(scene.trace, scene.taint, scene.names), loss)
    (term,) = sight.terms
    assert not term.reaches_student and term.student_ran_detached and term.reduction == "mean"
    assert term.input_sum != pytest.approx(1.0, abs=0.1)
    assert (sight.probabilities, sight.squashed_by) == ("student's", "softmax")


# -- names


def test_names_are_the_variables_and_the_paths():
    known_by_me, other = body(), body()
    scene = Scene(known_by_me, script=True)
    scene.known.students.append(Group(scene.taint.mask(known_by_me.parameters()), known_by_me))
    assert scene.names.param(known_by_me[0].weight) == "known_by_me.0.weight"
    assert scene.names.group(Group(7, None)) == "3 parameters"
    assert scene.names.param(other[0].weight) == "Linear.weight"
    assert scene.names.param(torch.zeros(2, 3)) == "unnamed parameter of shape (2, 3)"
    scene.names.finish([])
    assert len(scene.trace.names) == 4 and id(other[0].weight) not in scene.trace.names


# -- answers of declared networks


def test_answers_are_held_against_the_labels_shown_for_them(rows, labels):
    scene = Scene(body(), body())
    answers = Answers(scene.trace)
    for module in (scene.teacher, scene.student):
        answers.forward(module, (rows,), {}, module(rows))
    answers.labels(labels)
    hits = scene.trace.teacher.hits
    assert (
        hits.right == (scene.teacher(rows).argmax(1) == labels).sum() and scene.trace.teacher.student_width == CLASSES
    )
    answers.labels(labels)  # of which no answer is known
    assert scene.trace.teacher.hits is hits


def test_labels_after_the_step_are_another_batchs(rows, labels):
    scene = Scene(body(), body())
    answers = Answers(scene.trace)
    answers.forward(scene.teacher, (rows,), {}, scene.teacher(rows))
    answers.forget()
    answers.labels(labels)
    assert scene.trace.teacher.hits is None and scene.trace.teacher.labels_shown
