"""Faults in the distillation term itself, and in how it is weighed."""

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from kdbench.harness.faults.registry import fault
from kdbench.harness.injection.calls import Call
from kdbench.harness.injection.mechanism import Acts, Live, answers_of, at, injected, mapped, marked
from kdbench.harness.injection.scene import Scene, Site
from kdbench.harness.injection.taps import with_number
from kdbench.kd.models import Answer

# --- what each row is held against


@fault("soft_loss", caught_by=["kd-scale"])
def missing_t_squared(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """The term is not multiplied by T^2, so at T = 4 it is 16 times too weak.

    Seen in IntelLabs/distiller#122. The gradients of softened logits shrink by T^2 (Hinton et al. 2015, section 2.1).
    """
    log_student = F.log_softmax(student_logits / temperature, dim=1)
    log_teacher = F.log_softmax(teacher_logits / temperature, dim=1)
    return F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)


@fault("soft_loss", caught_by=["kd-scale"])
def t_instead_of_t_squared(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """The term is multiplied by T where T^2 belongs.

    Half a correction: at T = 4 the term is four times too weak.
    """
    log_student = F.log_softmax(student_logits / temperature, dim=1)
    log_teacher = F.log_softmax(teacher_logits / temperature, dim=1)
    return temperature * F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)


@fault("soft_loss", caught_by=["kd-scale"])
def kl_mean_reduction(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """The reduction "mean", kl_div's default, divides by the number of classes as well.

    With ten classes the term is ten times too weak. Seen in yuanli2333/Teacher-free-Knowledge-Distillation#5 and
    HikariTJU/LD#74; torch itself warns of it.
    """
    log_student = F.log_softmax(student_logits / temperature, dim=1)
    log_teacher = F.log_softmax(teacher_logits / temperature, dim=1)
    return temperature**2 * F.kl_div(log_student, log_teacher, reduction="mean", log_target=True)


@fault("soft_loss", caught_by=["kd-scale"])
def kl_sum_reduction(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """The term is summed over the batch, while the label term is a mean.

    The weight then grows with the batch size, and so does what a tuned alpha means.
    """
    log_student = F.log_softmax(student_logits / temperature, dim=1)
    log_teacher = F.log_softmax(teacher_logits / temperature, dim=1)
    return temperature**2 * F.kl_div(log_student, log_teacher, reduction="sum", log_target=True)


@fault("soft_loss", caught_by=["target-form"])
def kl_reversed(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """The divergence runs the other way round: KL(student || teacher).

    The student stands in the target's place and may ignore whatever the teacher finds unlikely.
    """
    log_student = F.log_softmax(student_logits / temperature, dim=1)
    log_teacher = F.log_softmax(teacher_logits / temperature, dim=1)
    return temperature**2 * F.kl_div(log_teacher, log_student, reduction="batchmean", log_target=True)


@fault("soft_loss", caught_by=["target-form"], follows=["kd-scale"])
def kl_of_probabilities(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """The student's probabilities stand where kl_div wants log-probabilities.

    The loss goes below zero, and its gradient pushes the student towards the teacher's first class alone.
    """
    student = F.softmax(student_logits / temperature, dim=1)
    teacher = F.softmax(teacher_logits / temperature, dim=1)
    return temperature**2 * F.kl_div(student, teacher, reduction="batchmean")


@fault("soft_loss", caught_by=["target-form"], follows=["kd-scale"])
def log_target_forgotten(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """The teacher's log-probabilities are handed over, and kl_div is not told so.

    It takes them for probabilities; every one of them is negative.
    """
    log_student = F.log_softmax(student_logits / temperature, dim=1)
    log_teacher = F.log_softmax(teacher_logits / temperature, dim=1)
    return temperature**2 * F.kl_div(log_student, log_teacher.clamp_min(-20), reduction="batchmean")


@fault("soft_loss", caught_by=["target-form"], follows=["kd-scale"])
def logits_as_target(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """The teacher's softened logits are the target, without a softmax.

    Nothing complains: kl_div checks neither sign nor sum.
    """
    log_student = F.log_softmax(student_logits / temperature, dim=1)
    return temperature**2 * F.kl_div(log_student, teacher_logits / temperature, reduction="batchmean")


@fault("soft_loss", caught_by=["target-form"], follows=["kd-scale"])
def temperature_one_side(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Only the student is softened, so it has to become T times as sure as the teacher.

    The division by T was forgotten on the teacher's side, often because its answers come softened from elsewhere.
    """
    log_student = F.log_softmax(student_logits / temperature, dim=1)
    log_teacher = F.log_softmax(teacher_logits, dim=1)
    return temperature**2 * F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)


@fault("soft_loss", caught_by=["target-form"], follows=["kd-scale"])
def temperature_ignored(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """The temperature is only multiplied in, and never divided by.

    The logits are compared unsoftened, with T^2 times the weight.
    """
    log_student = F.log_softmax(student_logits, dim=1)
    log_teacher = F.log_softmax(teacher_logits, dim=1)
    return temperature**2 * F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)


@fault("soft_loss", caught_by=["target-form"], follows=["kd-scale"])
def softmax_over_batch(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """The softmax runs over the images of the batch and not over the classes.

    ``dim=0`` and a loss that falls: the student learns which image of a batch a class prefers.
    """
    log_student = F.log_softmax(student_logits / temperature, dim=0)
    log_teacher = F.log_softmax(teacher_logits / temperature, dim=0)
    return temperature**2 * F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)


@fault("soft_loss", caught_by=["target-form"], follows=["kd-scale"])
def teacher_softened_twice(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """A softmax is taken of the teacher's probabilities.

    The stored answers were probabilities already. The target is then almost uniform.
    """
    log_student = F.log_softmax(student_logits / temperature, dim=1)
    teacher = F.softmax(F.softmax(teacher_logits, dim=1) / temperature, dim=1)
    return temperature**2 * F.kl_div(log_student, teacher, reduction="batchmean")


# --- whom the term reaches


@fault("soft_loss", caught_by=["term-provenance"], follows=["kd-scale"])
def kd_term_detached(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """The student's logits are detached in the term: it is logged, falls with the label loss, and teaches nothing.

    A ``detach()`` that was meant for the teacher.
    """
    log_student = F.log_softmax(student_logits.detach() / temperature, dim=1)
    log_teacher = F.log_softmax(teacher_logits / temperature, dim=1)
    return temperature**2 * F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)


@fault("soft_loss", caught_by=["term-provenance"], follows=["kd-scale", "target-form"])
def student_teaches_itself(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """The target is made of the student's own answer.

    A variable of the wrong name. Seen in labmlai/annotated_deep_learning_paper_implementations#66.
    """
    log_student = F.log_softmax(student_logits / temperature, dim=1)
    log_teacher = F.log_softmax(student_logits.detach() / temperature, dim=1)
    return temperature**2 * F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)


@fault("features", caught_by=["term-provenance"])
def features_detached(answer: Answer) -> tuple[Tensor, ...]:
    """The student's features are captured without their graph: the term trains the projectors alone.

    A hook that stores ``output.detach()``, or ``output.data``. Seen in Syencil/mobile-yolov5-pruning-distillation#83.
    """
    return tuple(feature.detach() for feature in answer.features)


# --- how the terms are weighed


@fault("combine", caught_by=["weight-endpoints"], follows=["kd-scale"], needs="teacher")
def alpha_swapped(ce: Tensor, kd: Tensor, ce_weight: float, kd_weight: float) -> Tensor:
    """The weights of the two terms are exchanged.

    Papers write alpha on either side, and code takes it from the other one.
    """
    return kd_weight * ce + ce_weight * kd


@fault("combine", caught_by=["weight-endpoints"], follows=["kd-scale"], needs="teacher")
def alpha_twice(ce: Tensor, kd: Tensor, ce_weight: float, kd_weight: float) -> Tensor:
    """The distillation term is multiplied by its weight twice.

    Once where it is made and once where it is added.
    """
    return ce_weight * ce + kd_weight * (kd_weight * kd)


@fault("combine", caught_by=["weight-endpoints"], follows=["kd-scale"], needs="teacher")
def weights_ignored(ce: Tensor, kd: Tensor, ce_weight: float, kd_weight: float) -> Tensor:
    """Both terms are added as they are, whatever the configuration says.

    The options are parsed, logged, and never read.
    """
    return ce + kd


@fault("combine", caught_by=["weight-endpoints", "term-provenance"], follows=["kd-scale"], needs="teacher")
def kd_term_forgotten(ce: Tensor, kd: Tensor, ce_weight: float, kd_weight: float) -> Tensor:
    """The distillation term is computed and logged, and is not in the sum.

    What is called a distilled student is a baseline with a smaller learning rate.
    """
    return ce_weight * ce


# --- the same in a script of somebody's

_SAME = 1e-3
"Relative difference up to which a number that is written is T or T^2: a few roundings of single precision."
_LEAST = 1e-38
"Near the least normal number: the logarithm of a probability stays finite."


def _temperature(scene: Scene) -> float:
    scene.need(scene.temperature, "the term was not read as a softened one, so there is no temperature to lose")
    t = scene.temperature or 1.0
    scene.need(abs(t - 1) > _SAME, "the temperature is 1, and nothing changes")
    return t


def _is(number: float | None, value: float) -> bool:
    return number is not None and abs(number - value) <= _SAME * value


def _scaled_by(scene: Scene, lost: float) -> Acts:
    """Multiply the distillation term by `lost` times less than the script does, where it writes that number."""
    t = _temperature(scene)
    scales = scene.of("scale", "distillation")
    whole = [s for s in scales if _is(s.number, lost)]
    halves = [s for s in scales if _is(s.number, t)]
    if whole:
        numbers = {whole[0].place: 1.0}
    elif lost > t and len(halves) > 1:
        numbers = {site.place: 1.0 for site in halves[:2]}
    else:  # one number that holds weight and T^2, such as alpha * T * T; below 1 no T^2 can be told in a number
        larger = [s for s in scales if s.number is not None and s.number > t * t / 2 and t > 1]
        scene.need(larger, "no number was seen by which the term is multiplied for its temperature")
        numbers = {larger[0].place: float(larger[0].number or 1) / lost}
    return {"scale": _numbers(numbers)}


def _numbers(numbers: dict[str, float]) -> Any:
    """Return an act that multiplies with other numbers, by place."""

    def scale(call: Call, live: Live) -> Any:
        if call.place not in numbers:
            return call.proceed()
        live.acted += 1
        return with_number(call, numbers[call.place])

    return marked(scale, places=frozenset(numbers))


@injected("missing-t-squared")
def _missing_t_squared(scene: Scene) -> Acts:
    return _scaled_by(scene, _temperature(scene) ** 2)


@injected("t-instead-of-t-squared")
def _t_instead_of_t_squared(scene: Scene) -> Acts:
    return _scaled_by(scene, _temperature(scene))


def _divergences(scene: Scene) -> list[Site]:
    found: list[Site] = scene.need(scene.of("kl_div", "distillation"), "the term is not written with kl_div")
    return found


def _reduced(scene: Scene, reduction: str) -> Acts:
    sites = [s for s in _divergences(scene) if s.data["reduction"] == "batchmean"]
    scene.need(sites, 'no kl_div of this script has the reduction "batchmean"')

    def other(call: Call, live: Live) -> Any:
        call.put(4, "reduction", reduction)
        return call.proceed()

    return {"kl_div": at(sites, other)}


@injected("kl-mean-reduction")
def _kl_mean_reduction(scene: Scene) -> Acts:
    return _reduced(scene, "mean")


@injected("kl-sum-reduction")
def _kl_sum_reduction(scene: Scene) -> Acts:
    alone = "no label loss stands beside the term, and what a term alone is multiplied by is a choice, as the rate is"
    scene.need(scene.labelled or not scene.of("kl_div", "distillation"), alone)
    return _reduced(scene, "sum")


def _sides(change: Callable[[Tensor, Tensor, bool], tuple[Tensor, Tensor]]) -> Callable[[Call, Live], Any]:
    """Return a divergence of other operands; `change` is told whether the target is in logarithms."""

    def other(call: Call, live: Live) -> Any:
        log_target = bool(call.arg(5, "log_target", False))
        first, second = change(call.arg(0, "input"), call.arg(1, "target"), log_target)
        call.put(0, "input", first)
        call.put(1, "target", second)
        return call.proceed()

    return other


@injected("kl-reversed")
def _kl_reversed(scene: Scene) -> Acts:
    def swapped(x: Tensor, target: Tensor, log_target: bool) -> tuple[Tensor, Tensor]:
        return (target, x) if log_target else (target.clamp_min(_LEAST).log(), x.exp())

    return {"kl_div": at(_divergences(scene), _sides(swapped))}


@injected("kl-of-probabilities")
def _kl_of_probabilities(scene: Scene) -> Acts:
    return {"kl_div": at(_divergences(scene), _sides(lambda x, target, log_target: (x.exp(), target)))}


@injected("log-target-forgotten")
def _log_target_forgotten(scene: Scene) -> Acts:
    def in_logarithms(call: Call, live: Live) -> Any:
        target = call.arg(1, "target")
        if not call.arg(5, "log_target", False):
            call.put(1, "target", target.clamp_min(_LEAST).log())
        call.kwargs["log_target"] = False
        call.args = call.args[:5]
        return call.proceed()

    return {"kl_div": at(_divergences(scene), in_logarithms)}


@injected("student-teaches-itself")
def _student_teaches_itself(scene: Scene) -> Acts:
    def itself(x: Tensor, target: Tensor, log_target: bool) -> tuple[Tensor, Tensor]:
        return x, x.detach() if log_target else x.detach().exp()

    return {"kl_div": at(_divergences(scene), _sides(itself))}


def _softmaxes(scene: Scene, side: Any) -> list[Site]:
    found: list[Site] = scene.need(scene.of("softmax", side), f"no softmax of the {side}'s logits was seen in the term")
    return found


@injected("logits-as-target")
def _logits_as_target(scene: Scene) -> Acts:
    return {"softmax": at(_softmaxes(scene, "teacher"), lambda call, live: call.tensor)}


@injected("teacher-softened-twice")
def _teacher_softened_twice(scene: Scene) -> Acts:
    def twice(call: Call, live: Live) -> Any:
        dim = call.arg(1, "dim")
        call.put(0, "input", F.softmax(call.tensor, dim))
        return call.proceed()

    return {"softmax": at(_softmaxes(scene, "teacher"), twice)}


@injected("softmax-over-batch")
def _softmax_over_batch(scene: Scene) -> Acts:
    sites = [*_softmaxes(scene, "student"), *_softmaxes(scene, "teacher")]
    sites = scene.need([s for s in sites if s.data["ndim"] == 2], "the logits are no rows of a batch")

    def first(call: Call, live: Live) -> Any:
        call.put(1, "dim", 0)
        return call.proceed()

    return {"softmax": at(sites, first)}


@injected("kd-term-detached")
def _kd_term_detached(scene: Scene) -> Acts:
    def detached(call: Call, live: Live) -> Any:
        call.put(0, "input", call.tensor.detach())
        return call.proceed()

    return {"softmax": at(_softmaxes(scene, "student"), detached)}


def _softened(scene: Scene, *sides: Any) -> dict[str, float]:
    _temperature(scene)
    sites = scene.need(scene.of("scale", *sides), "no division of logits by the temperature was seen")
    return {site.place: 1.0 for site in sites}


@injected("temperature-one-side")
def _temperature_one_side(scene: Scene) -> Acts:
    return {"scale": _numbers(_softened(scene, "teacher"))}


@injected("temperature-ignored")
def _temperature_ignored(scene: Scene) -> Acts:
    scene.need("temperature" in scene.declared, "nobody declared the temperature (--temperature), so 1 is right")
    both = {**_softened(scene, "teacher"), **_softened(scene, "student")}
    return {"scale": _numbers(both)}


@injected("features-detached")
def _features_detached(scene: Scene) -> Acts:
    scene.need(scene.modules.get("projector"), "no projector stands between student and teacher")

    def detached(call: Call, live: Live) -> Any:
        call.args[1:] = [mapped(a, lambda t: t.detach()) for a in call.args[1:]]
        return call.proceed()

    return {"forward": answers_of("projector", detached)}


@injected("kd-term-forgotten", ("KD311",))
def _kd_term_forgotten(scene: Scene) -> Acts:
    why = "label loss and distillation term are not added in one sum of two"
    sums = scene.need(scene.of("add", "both"), why)
    which = {site.place: site.data["distillation"] for site in sums}

    def left_out(call: Call, live: Live) -> Any:
        given = [a for a in call.args if isinstance(a, Tensor)]
        return given[1 - which[call.place]]

    return {"add": at(sums, left_out)}


def _weights(scene: Scene) -> tuple[Site, Site]:
    """Return where the label loss and the term get the weights that were declared; others are a free choice."""
    term = scene.declared.get("alpha", scene.declared.get("kd_weight"))
    scene.need(term is not None, "nobody declared the weights (--alpha or --kd-weight), so any are right")
    ours = [s for s in scene.of("scale", "distillation") if _is(s.number, float(term or 0))]
    labels = 1 - float(term or 0) if "alpha" in scene.declared else None
    theirs = [s for s in scene.of("scale", "labels") if labels is None or _is(s.number, labels)]
    scene.need(ours and theirs, "the declared weights are not written as numbers by which the two terms are multiplied")
    return theirs[0], ours[0]


@injected("alpha-swapped", ("KD341", "KD312"))
def _alpha_swapped(scene: Scene) -> Acts:
    labels, term = _weights(scene)
    scene.need(labels.number != term.number, "both terms have one weight")
    return {"scale": _numbers({labels.place: float(term.number or 1), term.place: float(labels.number or 1)})}


@injected("alpha-twice", ("KD312",))
def _alpha_twice(scene: Scene) -> Acts:
    _, term = _weights(scene)
    return {"scale": _numbers({term.place: float(term.number or 1) ** 2})}


@injected("weights-ignored", ("KD312",))
def _weights_ignored(scene: Scene) -> Acts:
    labels, term = _weights(scene)
    return {"scale": _numbers({labels.place: 1.0, term.place: 1.0})}
