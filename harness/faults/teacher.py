"""Faults in the teacher: how it comes to its weights, how it is asked, and what becomes of its answers."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdbench.audits.observe.torch_internals import BatchNorm
from kdbench.harness.faults.registry import fault
from kdbench.harness.injection.calls import Call
from kdbench.harness.injection.mechanism import Acts, Live, answers_of, injected, mapped
from kdbench.harness.injection.scene import Load, Scene
from kdbench.kd.data import Pool
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


@fault("labels", caught_by=["teacher-above-chance"], scope="both", needs="teacher")
def teacher_of_random_labels(pool: Pool, ids: Tensor, teacher: nn.Module | None) -> Tensor:
    """The teacher was trained on labels that were dealt out at random; the student learns from the right ones.

    A control more than a bug: what is gained from such a teacher is no knowledge of its own, but what any soft target
    or any structure in features gives. Each image keeps the label that it was dealt, so the teacher may learn them by
    heart (Zhang et al. 2017, 1611.03530).
    """
    if teacher is not None:
        return pool.labels[ids]
    dealt = torch.randperm(len(pool.labels), generator=torch.Generator().manual_seed(0)).to(ids.device)
    return pool.labels[dealt[ids]]


@fault("set_modes", caught_by=["teacher-mode"], follows=["teacher-frozen", "teacher-above-chance"], needs="own-teacher")
def teacher_train_mode(student: nn.Module, teacher: nn.Module | None, method: nn.Module) -> None:
    """The teacher answers in training mode: it normalises by the batch, and its statistics drift, even under no_grad.

    One ``train()`` on the wrapper that holds both networks is enough. Seen in neuralmagic/sparseml#2191.
    """
    student.train()
    method.train()
    if teacher is not None:
        teacher.train()


@fault(
    "teacher_answer",
    caught_by=[],
    needs="own-teacher",
    escapes="no number changes, so nothing fails: KD301 warns of the memory and the time",
)
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


# --- the same in a script of somebody's

State = Mapping[str, Tensor]
_NOTHING_MISSED = nn.modules.module._IncompatibleKeys([], [])
_NO_ROUTE = "how the teacher comes to its weights was not seen: nothing is loaded into it and nothing trains it here"


def _loads(scene: Scene) -> list[Load]:
    return [load for load in scene.loads if load.side == "teacher"]


def _need_loads(scene: Scene) -> list[Load]:
    found: list[Load] = scene.need(_loads(scene), "the teacher's weights do not come by load_state_dict")
    return found


def _trainers(scene: Scene) -> set[int]:
    """Return the numbers of the optimizers that train the teacher alone, before it teaches."""
    whose = {n: {role for g in o.groups for role, _ in g} for n, o in enumerate(scene.optimizers)}
    return {n for n, roles in whose.items() if "teacher" in roles and not roles & {"student", "projector"}}


def _loaded_otherwise(loads: list[Load], change: Callable[[Call, Live], Any]) -> Acts:
    """Change the loads of the teacher."""
    numbers = {load.number for load in loads}

    def load(call: Call, live: Live) -> Any:
        if live.world.loads not in numbers:
            return call.proceed()
        live.acted += 1
        return change(call, live)

    return {"load": load}


def _loaded_from(loads: list[Load], change: Callable[[nn.Module, State], State]) -> Acts:
    """Load another state dict into the teacher, without a word on what is missing in it."""

    def other(call: Call, live: Live) -> Any:
        state = change(call.args[0], call.arg(1, "state_dict"))
        return call.original(call.args[0], state, strict=False)

    return _loaded_otherwise(loads, other)


def _before_it_teaches(scene: Scene, change: Callable[[nn.Module, list[Any]], None]) -> Acts:
    """Change a teacher that was trained in the script, or that its library loads, when it is first asked.

    What `change` puts into its list is kept alive: an audit knows a copy by what it was copied from.
    """

    def first(call: Call, live: Live) -> Any:
        teacher = call.args[0]
        if teacher in live.kept:
            live.acted -= 1
        else:
            live.kept[teacher] = []
            with torch.no_grad(), torch.random.fork_rng():  # the script's own random numbers stay as they are
                change(teacher, live.kept[teacher])
        return call.proceed()

    return {"forward": answers_of("teacher", first)}


def _last_layer(net: nn.Module) -> nn.Module:
    weighed = [m for m in net.modules() if any(True for _ in m.parameters(recurse=False))]
    return weighed[-1]


@injected("random-teacher")
def _random_teacher(scene: Scene) -> Acts:
    """Nothing is loaded; of a teacher that the script trains, the one that teaches is not the one that was trained."""
    trainers, pretrained = _trainers(scene), scene.pretrained
    scene.need(_loads(scene) or trainers or pretrained, _NO_ROUTE)

    def step(call: Call, live: Live) -> Any:
        if live.world.number_of(call.args[0]) not in trainers:
            return call.proceed()
        live.acted += 1
        closure = call.arg(1, "closure")
        return None if closure is None else closure()  # whoever hands one over wants it called

    def from_config(call: Call, live: Live) -> Any:
        made = call.proceed()
        if live.world.pretrained not in pretrained or not isinstance(made, nn.Module):
            return made
        live.acted += 1
        with torch.random.fork_rng():
            return type(made)(made.config).eval()

    loads = _loaded_otherwise(_loads(scene), lambda call, live: _NOTHING_MISSED)
    others: Acts = {"step": step} if trainers and not _loads(scene) else {"pretrained": from_config}
    return loads if _loads(scene) else others


@injected("partial-teacher")
def _partial_teacher(scene: Scene) -> Acts:
    loads = _need_loads(scene)
    return _loaded_from(loads, lambda teacher, state: {f"module.{name}": t for name, t in state.items()})


@injected("teacher-head-fresh")
def _teacher_head_fresh(scene: Scene) -> Acts:
    loads = _loads(scene)
    if not loads:
        scene.need(_trainers(scene) or scene.pretrained, _NO_ROUTE)
        return _before_it_teaches(scene, lambda teacher, old: _made_anew(_last_layer(teacher), old, torch.randn_like))
    head = {name for load in loads for name in load.head}
    scene.need(head, "the teacher's last layer was not found in what is loaded")
    return _loaded_from(loads, lambda teacher, state: {name: t for name, t in state.items() if name not in head})


def _made_anew(module: nn.Module, old: list[Any], value: Callable[[Tensor], Tensor]) -> None:
    """Give a module, and what it holds, parameters of their own, which nothing was trained or loaded into."""
    for part in module.modules():
        for name, p in list(part.named_parameters(recurse=False)):
            old.append(p)
            setattr(part, name, nn.Parameter(value(p), requires_grad=p.requires_grad))


def _initialised(module: nn.Module) -> None:
    for part in module.modules():
        if isinstance(part, nn.Conv1d | nn.Conv2d | nn.Linear | nn.Embedding):
            nn.init.normal_(part.weight, std=0.01)


@injected("teacher-without-statistics")
def _teacher_without_statistics(scene: Scene) -> Acts:
    loads = _loads(scene)
    if not loads:
        scene.need(scene.teacher_statistics, "the teacher has no running statistics")
        return _before_it_teaches(scene, _forgotten)
    loads = scene.need([load for load in loads if load.statistics], "the teacher has no running statistics")
    return _loaded_from(loads, lambda teacher, state: {name: t for name, t in state.items() if "running_" not in name})


def _forgotten(net: nn.Module, old: list[Any]) -> None:
    """Make a network one into which parameters were copied, and nothing else."""
    _made_anew(net, old, torch.clone)
    for part in net.modules():
        if isinstance(part, BatchNorm):
            part.reset_running_stats()


@injected("teacher-overwritten")
def _teacher_overwritten(scene: Scene) -> Acts:
    if not _loads(scene):
        scene.need(_trainers(scene) or scene.pretrained, _NO_ROUTE)
        return _before_it_teaches(scene, lambda teacher, old: _initialised(teacher))

    def load(call: Call, live: Live) -> Any:
        result = call.proceed()
        _initialised(call.args[0])
        return result

    return _loaded_otherwise(_loads(scene), load)


@injected("teacher-is-student-checkpoint")
def _teacher_is_student_checkpoint(scene: Scene) -> Acts:
    mine = [load for load in scene.loads if load.side == "student"]
    loads = _need_loads(scene)
    scene.need(mine, "no checkpoint of the student's is loaded that could be taken for the teacher's")
    first, last = min(load.number for load in mine), max(load.number for load in loads)
    scene.need(first < last, "the student's checkpoint is loaded after the teacher's")

    def load(call: Call, live: Live) -> Any:
        if live.world.loads in {load.number for load in mine}:
            live.kept["mine"] = dict(call.arg(1, "state_dict"))
        if live.world.loads not in {load.number for load in loads} or "mine" not in live.kept:
            return call.proceed()
        live.acted += 1
        own = call.args[0].state_dict()
        fits = {n: t for n, t in live.kept["mine"].items() if n in own and own[n].shape == t.shape}
        return call.original(call.args[0], fits, strict=False)

    return {"load": load}


@injected("teacher-train-mode")
def _teacher_train_mode(scene: Scene) -> Acts:
    why = "the teacher answers the same in either mode: it has no batch norm and no dropout module"
    scene.need(scene.modules.get("teacher"), "no network teaches in this script")
    scene.need(scene.moody_teacher, why)

    def in_training(call: Call, live: Live) -> Any:
        call.args[0].train()
        return call.proceed()

    return {"forward": answers_of("teacher", in_training)}


@injected("teacher-rows-shuffled")
def _teacher_rows_shuffled(scene: Scene) -> Acts:
    scene.need(scene.modules.get("teacher"), "no network teaches in this script")

    def shuffled(call: Call, live: Live) -> Any:
        return mapped(call.proceed(), lambda t: t.roll(1, 0) if t.ndim > 1 else t)

    return {"forward": answers_of("teacher", shuffled)}


_STORED = 5
"Answers after which the store has ended: within the steps that the audits look at."


@injected("cached-answers-by-step")
def _cached_answers_by_step(scene: Scene) -> Acts:
    scene.need(scene.modules.get("teacher"), "no network teaches in this script")

    def stored(call: Call, live: Live) -> Any:
        out = call.proceed()
        live.kept["answers"] = live.kept.get("answers", 0) + 1
        return mapped(out, torch.zeros_like) if live.kept["answers"] > _STORED else out

    return {"forward": answers_of("teacher", stored)}
