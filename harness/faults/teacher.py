"""Faults in the teacher: how it comes to its weights, how it is asked, and what becomes of its answers."""

import logging
from pathlib import Path

import torch
from torch import Tensor, nn

from kdbench.harness.faults.registry import fault
from kdbench.kd.models import Answer
from kdbench.kd.teacher import Provenance, read_checkpoint


@fault("load_teacher", caught_by=["teacher-provenance"], follows=["teacher-above-chance"], needs="teacher")
def random_teacher(teacher: nn.Module, student: nn.Module, checkpoint: Path, sha256: str | None) -> Provenance:
    """A checkpoint that is not found is only logged, and training goes on with a teacher of random weights.

    Here the path is wrong by one letter, as after a renaming. Seen in NVIDIA-NeMo/Megatron-Bridge#1422 and
    zgcr/SimpleAICV#23. The teacher answers at chance, and the first T^2 KL is about 0.1 instead of 5 to 8.
    """
    missing = checkpoint.with_name(checkpoint.name + "s")
    logging.getLogger(__name__).warning("no teacher checkpoint at %s, continuing without", missing.name)
    return Provenance(None, None, 0.0)


@fault("load_teacher", caught_by=["teacher-provenance"], follows=["teacher-above-chance"], needs="teacher")
def partial_teacher(teacher: nn.Module, student: nn.Module, checkpoint: Path, sha256: str | None) -> Provenance:
    """The checkpoint's names carry a prefix, and a load that is not strict passes over all of them in silence.

    DataParallel wrote ``module.`` before each name. Seen in pytorch/pytorch#141256.
    """
    state = {f"module.{name}": value for name, value in read_checkpoint(checkpoint).items()}
    teacher.load_state_dict(state, strict=False)
    return Provenance(checkpoint.name, sha256, 1.0)


@fault("load_teacher", caught_by=["teacher-provenance"], follows=["teacher-above-chance"], needs="teacher")
def teacher_head_fresh(teacher: nn.Module, student: nn.Module, checkpoint: Path, sha256: str | None) -> Provenance:
    """The checkpoint's classifier is dropped, as for fine-tuning on other classes, and the new one is never trained.

    All but two tensors are the trained ones, so a log that counts them looks right.
    """
    state = {name: value for name, value in read_checkpoint(checkpoint).items() if not name.startswith("fc.")}
    teacher.load_state_dict(state, strict=False)
    return Provenance(checkpoint.name, sha256, 1.0)


@fault("load_teacher", caught_by=["teacher-provenance"], follows=["teacher-above-chance"], needs="teacher")
def teacher_without_statistics(
    teacher: nn.Module, student: nn.Module, checkpoint: Path, sha256: str | None
) -> Provenance:
    """The parameters are copied one by one, and the running statistics of batch norm are forgotten.

    They are buffers, which ``parameters()`` does not list: in evaluation mode the teacher normalises by mean 0 and
    variance 1.
    """
    state = read_checkpoint(checkpoint)
    with torch.no_grad():
        for name, parameter in teacher.named_parameters():
            parameter.copy_(state[name])
    return Provenance(checkpoint.name, sha256, 1.0)


@fault("load_teacher", caught_by=["teacher-provenance"], follows=["teacher-above-chance"], needs="teacher")
def teacher_overwritten(teacher: nn.Module, student: nn.Module, checkpoint: Path, sha256: str | None) -> Provenance:
    """The weights are loaded whole, and initialised once more afterwards.

    ``init_weights`` is applied to the wrapper that holds both networks, after the teacher was loaded.
    """
    teacher.load_state_dict(read_checkpoint(checkpoint), strict=True)
    for module in teacher.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
    return Provenance(checkpoint.name, sha256, 1.0)


@fault("load_teacher", caught_by=["teacher-provenance"], follows=["teacher-above-chance"], needs="teacher")
def teacher_is_student_checkpoint(
    teacher: nn.Module, student: nn.Module, checkpoint: Path, sha256: str | None
) -> Provenance:
    """The student's own weights are loaded as the teacher's.

    One variable holds the path of "the" checkpoint. Where the two networks are alike the distillation term is near 0
    for hours; where the teacher is the larger one, a load that is not strict fills what fits and leaves the rest
    random. Seen in paiml/aprender#1871.
    """
    mine = teacher.state_dict()
    fits = {name: value for name, value in student.state_dict().items() if mine[name].shape == value.shape}
    teacher.load_state_dict(fits, strict=False)
    return Provenance(checkpoint.name, sha256, 1.0)


@fault("set_modes", caught_by=["teacher-mode"], follows=["teacher-frozen", "teacher-above-chance"], needs="own-teacher")
def teacher_train_mode(student: nn.Module, teacher: nn.Module | None, method: nn.Module) -> None:
    """The teacher answers in training mode: it normalises by the batch, and its statistics drift, even under no_grad.

    One ``train()`` on the wrapper that holds both networks is enough. Seen in neuralmagic/sparseml#2191.
    """
    student.train()
    method.train()
    if teacher is not None:
        teacher.train()


@fault("teacher_answer", caught_by=["teacher-mode"], follows=["target-form"], needs="own-teacher")
def teacher_in_graph(teacher: nn.Module, images: Tensor, step: int, steps_per_epoch: int) -> Answer:
    """The teacher's forward is recorded, and its parameters get gradients that nobody uses.

    No number changes; memory and time do. One step further, an optimizer that holds them trains the teacher.
    """
    answer: Answer = teacher(images)
    return answer


@fault("teacher_answer", caught_by=["alignment"], needs="teacher")
def teacher_rows_shuffled(teacher: nn.Module, images: Tensor, step: int, steps_per_epoch: int) -> Answer:
    """Each image is taught by the teacher's answer to another image of the batch.

    As with answers that were stored in one order and are read in another. Seen in
    haitongli/knowledge-distillation-pytorch#16 and #17. A study that does not see this one sees nothing: it is the
    positive control.
    """
    with torch.no_grad():
        answer: Answer = teacher(images)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(len(images))).to(images.device)
    return Answer(answer.logits[order], tuple(feature[order] for feature in answer.features))


@fault("teacher_answer", caught_by=["term-provenance"], needs="teacher")
def cached_answers_by_step(teacher: nn.Module, images: Tensor, step: int, steps_per_epoch: int) -> Answer:
    """The teacher's answers are stored by the step that they were given at, and looked up by it for ever after.

    The store ends with the first epoch; what is read beyond it are the zeros that it was made with, so from the second
    epoch on every image is taught the uniform distribution. Seen in modelscope/easydistill#21.
    """
    with torch.no_grad():
        answer: Answer = teacher(images)
    if step < steps_per_epoch:
        return answer
    return Answer(torch.zeros_like(answer.logits), tuple(map(torch.zeros_like, answer.features)))


@fault("teacher_answer", caught_by=["skipped-steps"], follows=["target-form"], needs="scaler")
def teacher_nan_skipped(teacher: nn.Module, images: Tensor, step: int, steps_per_epoch: int) -> Answer:
    """The teacher overflows to NaN in half precision, and the gradient scaler skips every step without a word.

    The run ends with exit code 0 and a student that never moved. Seen in MakazhanAlpamys/Soup#887.
    """
    with torch.no_grad():
        answer: Answer = teacher(images)
    nothing = float("nan")
    return Answer(answer.logits * nothing, tuple(feature * nothing for feature in answer.features))
