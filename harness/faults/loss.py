"""Faults in the distillation term itself, and in how it is weighed."""

import torch.nn.functional as F
from torch import Tensor

from kdbench.harness.faults.registry import fault
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
