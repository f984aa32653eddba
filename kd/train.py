"""The one training loop. It asks the `Procedure` every question that it has, and never tests a flag."""

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.kd.accelerate import captured, check_folded, compiled, folded, rounding
from kdbench.kd.answers import Answers, AskedLate, may_keep, same_bits, stacked
from kdbench.kd.checkpoint import State
from kdbench.kd.data import Crops, Dataset, Pool, draw_crops, statistics
from kdbench.kd.errors import InputError
from kdbench.kd.evaluate import accuracy, logits_of
from kdbench.kd.methods import METHODS, Batch, Images, Method, MethodSettings, Terms, why_not_stages
from kdbench.kd.methods import build as build_method
from kdbench.kd.models import Answer, build, keep_stages, parse_stages, stage_channels
from kdbench.kd.procedure import Procedure, Split
from kdbench.kd.recipe import Recipe
from kdbench.kd.streams import derive
from kdbench.kd.teacher import Provenance

FIRST_STEPS = 200
"Steps whose gradient norms are kept one by one."
OWN_STEPS = 20
"Steps that the networks take as they are, before folded or compiled ones stand in: who watches a training sees them."


@dataclass(frozen=True)
class Teacher:
    """Which network teaches, and where its trained weights lie."""

    arch: str
    checkpoint: Path
    sha256: str | None = None


@dataclass(frozen=True)
class Epoch:
    """What one epoch of training showed; all of it is a function of the trial's spec."""

    epoch: int
    lr: float
    "Learning rate of the epoch's last step."
    loss: dict[str, float]
    "Mean over the steps of each term before weighting, and of the weighted total."
    train_accuracy: float
    "In percent, over the augmented batches as they were trained on."
    val_accuracy: float
    grad_norms: dict[str, dict[str, float]]
    "By group (student, projectors, all): mean and maximum over the steps, before clipping."
    clipped_share: float
    "Share of the steps whose norm over all groups exceeded the recipe's bound."
    overflowed_steps: int
    "Steps whose gradient was no finite number; under fp16 the scaler skips them. They count in no norm above."
    digest: str
    "Of the weights of student and projectors after the epoch."

    @property
    def finite(self) -> bool:
        """Whether the loss stayed a number."""
        return all(value - value == 0 for value in self.loss.values())


_LISTS = ("val_scores", "test_scores", "first_norms", "digests")
"What a training keeps an entry of for each epoch or step."


@dataclass
class Training:
    """Everything that one training holds. Make it with :func:`prepare`, run it with :func:`epochs`."""

    recipe: Recipe
    procedure: Procedure
    settings: MethodSettings
    seed: int
    pool: Pool
    split: Split
    student: nn.Module
    teacher: nn.Module | None
    method: Method
    provenance: Provenance | None
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    scores_test: bool = False
    "Whether each epoch is scored on the test set too: only a rule that selects by it is shown those scores."
    first_norms: list[list[float]] = field(default_factory=list)
    "Of the first steps (at most `FIRST_STEPS`): each group's norm before clipping, in the order of `norm_names`."
    norm_names: tuple[str, ...] = ()
    val_scores: list[float] = field(default_factory=list)
    test_scores: list[float] = field(default_factory=list)
    best: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    "Weights of the epoch selected so far, by module (student, method)."
    best_epoch: int = -1
    digests: list[str] = field(default_factory=list)
    "Of the weights after each epoch."
    detached: set[str] = field(default_factory=set)
    "Names of the method's terms that came without a graph: they are added to the loss and train nothing."
    resume: State | None = None
    "Where an earlier attempt was when it was cut off."
    resumed_after: int | None = None
    "Epochs that were not trained again."
    answers: Answers | None = None
    "Where the teacher's answers are kept for other trainings; what may not be kept is asked in every step."
    kept_epochs: int = 0
    "Epochs in which the teacher's answers were read and not asked for."

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in the train split; what does not fill a batch is left for another epoch's order."""
        return len(self.split.train) // self.recipe.batch_size

    @property
    def rows(self) -> int:
        """Rows of a batch: its images, each as often as the method has crops of it."""
        return self.recipe.batch_size * self.settings.crops()

    def restore_selected(self) -> int:
        """Load the selected epoch's weights into student and method; return that epoch, counted from 1.

        An epoch's weights are kept when it is selected on the scores so far; a rule that goes back to an earlier epoch
        than it chose then is an InputError.
        """
        selected = self.procedure.select(self.val_scores, self.test_scores)
        if selected != self.best_epoch:
            raise InputError(
                f"select chose epoch {selected + 1} in the end, which it had not chosen when it was the latest; "
                "its weights were not kept"
            )
        self.student.load_state_dict(self.best["student"])
        self.method.load_state_dict(self.best["method"])
        return selected + 1

    def state_dict(self) -> State:
        """Return the state after the epoch that was yielded last, from which :func:`epochs` goes on."""
        return {
            "modules": {name: module.state_dict() for name, module in self._modules().items()},
            # A fault may have the optimizer move what belongs to none of them.
            "moved": [p.detach() for p in self._moved()],
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "best": self.best,
            "best_epoch": self.best_epoch,
            **{name: getattr(self, name) for name in _LISTS},
        }

    def load_state_dict(self, state: State) -> None:
        """Take over a state that :meth:`state_dict` returned."""
        for name, module in self._modules().items():
            module.load_state_dict(state["modules"][name])
        with torch.no_grad():
            for parameter, value in zip(self._moved(), state["moved"], strict=True):
                parameter.copy_(value)
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.best, self.best_epoch = state["best"], state["best_epoch"]
        for name in _LISTS:
            getattr(self, name)[:] = state[name]

    def _modules(self) -> dict[str, nn.Module]:
        named = {"student": self.student, "method": self.method, "teacher": self.teacher}
        return {name: module for name, module in named.items() if module is not None}

    def _moved(self) -> list[nn.Parameter]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def batches(self, ids: Tensor, size: int = 500) -> Sequence[Tensor]:
        """Return ids in pieces for scoring, on the training's device."""
        return ids.to(self.pool.device).split(size)


def prepare(
    dataset: Dataset,
    arch: str,
    teacher: Teacher | None,
    method: str,
    settings: MethodSettings,
    recipe: Recipe,
    procedure: Procedure,
    seed: int,
    device: torch.device,
    stages: str | None = None,
) -> Training:
    """Build models, projectors, optimizer and data for one training; the teacher is loaded here.

    `stages` says which stages of teacher and student go together ("2-1, 3-2"); None for each with the same one.

    Raises InputError when the recipe does not fit the data or the teacher's checkpoint does not fit its network.
    """
    # Longer than a screen, as the loop below: both are read from top to bottom beside a method section.
    ask = procedure
    split = ask.split(dataset.train_ids, dataset.test_ids, recipe, ask.stream(recipe.split_seed, "split"))
    recipe.check_batches(len(split.train))
    if (needs := recipe.needs_cuda()) is not None and device.type != "cuda":
        raise InputError(f"recipe: {needs} needs a CUDA device, and the training is for {device.type}")
    if METHODS[method].needs_teacher != (teacher is not None):
        raise InputError(f"method {method} {'needs a' if teacher is None else 'has no use for a'} teacher")
    normalise = None if recipe.normalisation == "cifar10" else statistics(dataset.pixels[split.train])
    pool = Pool(dataset, recipe.crop_padding, device, normalise)

    size, classes = dataset.size, len(dataset.classes)
    stem = ask.stem(size)
    student = build(arch, stem, classes, recipe.base_width, ask.stream(seed, "student/init"), size)
    teacher_net, provenance = None, None
    if teacher is not None:
        teacher_net = build(teacher.arch, stem, classes, recipe.base_width, ask.stream(seed, "teacher/init"), size)
        provenance = ask.load_teacher(teacher_net, student, teacher.checkpoint, teacher.sha256)
    channels: tuple[Sequence[int], Sequence[int]] = ((), ())
    if teacher is not None and teacher_net is not None and METHODS[method].stages != "none":
        channels = stage_channels(arch, student, size), stage_channels(teacher.arch, teacher_net, size)
        if stages is not None:
            pairs = parse_stages(stages)
            channels = (
                keep_stages(arch, student, channels[0], [own for _, own in pairs]),
                keep_stages(teacher.arch, teacher_net, channels[1], [its for its, _ in pairs]),
            )
        counts = len(channels[0]), len(channels[1])
        if (why := why_not_stages(method, *counts)) is not None:
            raise InputError(f"{why}; {arch} answers with {counts[0]}, and {teacher.arch} with {counts[1]}")
    images = Images(split.train, dataset.labels[split.train])
    module = build_method(method, *channels, settings, ask, ask.stream(seed, "projectors/init"), images)

    # Layout before the optimizer is built: moving a module afterwards can leave its parameters behind.
    for net in (student, teacher_net, module):
        if net is not None:
            net.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(
        [{"params": group} for group in map(list, ask.trainable(student, module, teacher_net)) if group],
        lr=recipe.lr,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        nesterov=recipe.nesterov and recipe.momentum > 0,
        fused=True,
    )
    scaler = torch.amp.GradScaler(device.type, enabled=recipe.precision == "fp16")
    if scaler.is_enabled() and recipe.momentum > 0:
        # torch's fused SGD leaves these uninitialised if the first step of all is skipped. From zeros the first step
        # has the same bits as from nothing: momentum times zero, plus the gradient.
        for group in optimizer.param_groups:
            optimizer.state.update({p: {"momentum_buffer": torch.zeros_like(p)} for p in group["params"]})
    return Training(
        recipe,
        procedure,
        settings,
        seed,
        pool,
        split,
        student,
        teacher_net,
        module,
        provenance,
        optimizer,
        scaler,
    )


def epochs(training: Training, on_batch: Callable[[Tensor], None] | None = None) -> Iterator[Epoch]:
    """Train, yielding what each epoch showed; `on_batch` is told each batch's labels before its update.

    Nothing in an epoch waits for the device: sums stay there and are read once at the epoch's end.
    """
    t, ask, recipe = training, training.procedure, training.recipe
    size = t.rows
    autocast = _autocast(t)
    update = _Update(t)
    student, teacher, own = t.student, t.teacher, True
    names = ["ce", *(t.settings.terms() if t.teacher is not None else ()), "total"]
    for number in _numbers(t):
        ask.set_modes(t.student, t.teacher, t.method)
        ids, crops = _drawn(t, number)
        sums = torch.zeros(len(names) + 1, device=t.pool.device)
        lr, distils = 0.0, number < round(recipe.distil_until * recipe.epochs)
        teaching = _Teaching(t, number, ids, crops)
        # Forward and backward alike, and no further than an epoch: who trains something else in this process, or looks
        # at a network between two epochs, has torch as it was.
        with rounding(recipe.precision):
            for step in range(t.steps_per_epoch):
                rows = slice(step * size, (step + 1) * size)
                labels = ask.labels(t.pool, ids[rows], t.teacher)
                at = number * t.steps_per_epoch + step
                lr = ask.learning_rate(recipe, at, t.steps_per_epoch)
                for group in ask.scheduled(t.optimizer.param_groups):
                    group["lr"] = lr
                images = ask.views(t.pool, ids[rows], crops.batch(rows))
                if own and at >= OWN_STEPS:  # a training that is resumed may pass that step over
                    student, teacher = _stand_ins(t, images.teacher, autocast)
                    own = False
                target = teaching(teacher, images.teacher, step) if teacher is not None and distils else None
                with autocast:
                    answer = student(images.student)
                    ce = F.cross_entropy(answer.logits.float(), labels)
                    batch = Batch(t.method.needs, labels, ids[rows], images)
                    terms = {} if target is None else _named_terms(t, t.method(answer, target, batch))
                    loss = _weighed(t, ce, terms)
                if on_batch is not None:
                    on_batch(labels)
                update(loss)
                right = (answer.logits.detach().argmax(1) == labels).sum()
                seen = [ce, *(terms.get(name, torch.zeros_like(ce)) for name in names[1:-1]), loss]
                sums += torch.stack([*(value.detach().float() for value in seen), right.float()])
        teaching.end()
        *means, right_mean = (sums.double() / t.steps_per_epoch).tolist()
        t.val_scores.append(_score(t, t.split.val))
        if t.scores_test:
            t.test_scores.append(_score(t, t.split.test))
        if ask.select(t.val_scores, t.test_scores) == number:
            t.best, t.best_epoch = {"student": _copy(t.student), "method": _copy(t.method)}, number
        norms, clipped_share, overflowed = update.read()
        t.digests.append(weight_digest(t.student, t.method))
        yield Epoch(
            epoch=number + 1,
            lr=lr,
            loss=dict(zip(names, means, strict=True)),
            train_accuracy=100 * right_mean / size,
            val_accuracy=t.val_scores[-1],
            grad_norms=norms,
            clipped_share=clipped_share,
            overflowed_steps=overflowed,
            digest=t.digests[-1],
        )


def _drawn(t: Training, number: int) -> tuple[Tensor, Crops]:
    """Draw an epoch's images and crops, batch after batch, each batch once for every crop that it has of its images."""
    recipe, ask, steps, size = t.recipe, t.procedure, t.steps_per_epoch, t.recipe.batch_size
    order = torch.randperm(len(t.split.train), generator=ask.stream(t.seed, f"order/{number}"))[: steps * size]
    names = [f"crops/{number}", *(f"crops/{number}/{more}" for more in range(1, t.settings.crops()))]
    draws = [draw_crops(steps * size, recipe.crop_padding, recipe.flip, ask.stream(t.seed, name)) for name in names]
    ids = t.split.train[order].view(steps, 1, size).expand(-1, len(names), -1)
    crops = (torch.stack([draw.view(steps, size) for draw in of_all], dim=1) for of_all in zip(*draws, strict=True))
    return ids.flatten().to(t.pool.device), Crops(*(crop.flatten().to(t.pool.device) for crop in crops))


def _named_terms(t: Training, found: Terms) -> Terms:
    """Return a method's terms in the order of their weights; InputError if they are not the terms that have one.

    Each must be one number that a gradient can go through.
    """
    names, who = t.settings.terms(), f"method {t.method.name}"
    if not isinstance(found, Mapping):
        example = ", ".join(f'"{name}": ...' for name in names)
        raise InputError(f"{who} returned a {type(found).__name__}; return its terms by name: {{{example}}}")
    for name, term in found.items():
        if not isinstance(term, Tensor):
            raise InputError(
                f"{who} returned a {type(term).__name__} as term {name}; return a tensor of one number, computed from "
                "the student's answer without .item() or float()"
            )
        if term.ndim:
            raise InputError(
                f"{who} returned the term {name} of shape {tuple(term.shape)}; reduce it to one number, as with .mean()"
            )
    if {*found} != {*names}:
        raise InputError(
            f"{who} returned the terms {', '.join(found) or 'none'}, and its settings weigh {', '.join(names)}; "
            "each term x needs the setting x_weight, and each x_weight the term x"
        )
    t.detached |= {name for name in names if not found[name].requires_grad}
    return {name: found[name] for name in names}


def _weighed(t: Training, ce: Tensor, terms: Terms) -> Tensor:
    """Return the loss: the labels' and the first term are combined, and each further term with what there is."""
    ask, total, weight = t.procedure, ce, t.settings.ce_weight
    if not terms:  # a student that was distilled until now goes on with the labels as if there were nothing else
        return ask.combine(total, torch.zeros_like(ce), weight if t.teacher is None else 1.0, 0.0)
    for name, term in terms.items():
        total, weight = ask.combine(total, term, weight, t.settings.weight(name)), 1.0
    return total


def _numbers(t: Training) -> Iterator[int]:
    """Yield the epochs to be trained, from 0; of a training to be resumed the first `OWN_STEPS`, then what it lacks.

    The first epochs are trained again because whoever watches a training sees only its first steps. They also prove
    that this machine gives the bits of the one that wrote the state; if it does not, all epochs are trained.
    """
    number = 0
    while number < t.recipe.epochs:
        yield number
        number += 1
        if t.resume is None or number * t.steps_per_epoch < OWN_STEPS:
            continue
        state, t.resume = t.resume, None
        digests = state["digests"]
        if number >= len(digests):
            continue
        if t.digests[:number] != digests[:number]:
            logging.warning("epoch %d has other weights than the one before the interruption: starting over", number)
            continue
        t.load_state_dict(state)
        number = t.resumed_after = len(digests)


def _stand_ins(t: Training, images: Tensor, autocast: torch.autocast) -> tuple[nn.Module, nn.Module | None]:
    """Return what answers for student and teacher from now on, as the recipe has it; a batch proves that it may."""
    student, teacher = t.student, t.teacher
    if teacher is not None and t.recipe.fold_teacher:
        copied = folded(teacher)
        with torch.no_grad(), autocast:
            check_folded(copied(images).logits.float(), teacher(images).logits.float(), t.recipe.precision)
        teacher = copied
    if t.recipe.compile:
        student, teacher = compiled(student), None if teacher is None else compiled(teacher)
    if t.recipe.graphs:
        try:
            if teacher is not None:
                teacher = captured(teacher, images, autocast, trained=False)
            student = captured(student, images, autocast, trained=True)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise RuntimeError(f"CUDA graphs of this network cannot be made; use --no-graphs ({error})") from error
    return student, teacher


def _autocast(t: Training) -> torch.autocast:
    """Return a block of the training's precision; it caches weight casts for as long as it lives."""
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(t.recipe.precision)
    return torch.autocast(t.pool.device.type, dtype=half or torch.bfloat16, enabled=half is not None)


class _Teaching:
    """The teacher's answers in an epoch: its own, or those that it gave another training about the same batches.

    Kept answers are used after the first `OWN_STEPS`, which are watched, and only once the teacher itself gave the same
    bits about one batch of the epoch; another training's check is of another batch. So a wrong file is found before an
    answer of it was used.
    """

    def __init__(self, t: Training, number: int, ids: Tensor, crops: Crops) -> None:
        self.t, self.number, self.ids, self.crops = t, number, ids, crops
        self.first = max(0, OWN_STEPS - number * t.steps_per_epoch)
        may = may_keep(type(t.method), t.procedure, t.recipe, t.pool.device) and self.first < t.steps_per_epoch
        may = may and t.settings.crops() == 1  # the batches of several crops are those of no other method
        self.files = t.answers if may else None
        self.kept = self.files.read(number, t.steps_per_epoch) if self.files is not None else None
        self.proven = False
        self.asked: list[Tensor] = []

    def __call__(self, teacher: nn.Module, images: Tensor, step: int) -> Answer:
        """Return the answer to a step's images, which are counted within the epoch."""
        if step >= self.first and self._holds(teacher):
            assert self.kept is not None
            late = AskedLate(partial(self._ask, teacher, images, step))
            return Answer(self.kept[step].clone(), late)  # type: ignore[arg-type]
        answer = self._ask(teacher, images, step)
        if self.files is not None:
            self.asked.append(answer.logits.clone())
        return answer

    def _ask(self, teacher: nn.Module, images: Tensor, step: int) -> Answer:
        steps = self.t.steps_per_epoch
        with _autocast(self.t):
            return self.t.procedure.teacher_answer(teacher, images, self.number * steps + step, steps)

    def _holds(self, teacher: nn.Module) -> bool:
        """Say whether kept answers can be used; the first time, ask the teacher about one batch of them."""
        if self.kept is None or self.proven:
            return self.kept is not None
        t, size = self.t, self.t.rows
        drawn = derive(t.seed, f"answers/{self.number}/{t.method.name}/{t.settings}")
        step = self.first + drawn % (t.steps_per_epoch - self.first)
        rows = slice(step * size, (step + 1) * size)
        images = t.procedure.views(t.pool, self.ids[rows], self.crops.batch(rows)).teacher
        self.proven = same_bits(self._ask(teacher, images, step).logits, self.kept[step])
        if not self.proven and self.files is not None:
            self.files.discard(self.number, f"is not what it answers in step {step + 1}")
            self.kept = None
        return self.proven

    def end(self) -> None:
        """Keep what the teacher was asked, if that is the whole epoch."""
        self.t.kept_epochs += self.proven
        if self.files is not None and len(self.asked) == self.t.steps_per_epoch:
            logits = stacked(self.asked)
            if logits is not None:
                self.files.write(self.number, logits)


class _Update:
    """The verbs of one update, done in the order that the procedure says; and the norms seen on the way."""

    def __init__(self, training: Training) -> None:
        self.t = training
        self.groups = {
            "student": [*training.student.parameters()],
            "projectors": [*training.method.parameters()],
        }
        self.groups = {name: params for name, params in self.groups.items() if params}
        training.norm_names = (*self.groups, "all")
        self.seen: list[Tensor] = []
        self.measured = False

    def __call__(self, loss: Tensor) -> None:
        self.measured = False
        for verb in self.t.procedure.order():
            getattr(self, verb)(loss)

    def zero(self, loss: Tensor) -> None:
        self.t.optimizer.zero_grad(set_to_none=True)

    def backward(self, loss: Tensor) -> None:
        self.t.scaler.scale(loss).backward()

    def unscale(self, loss: Tensor) -> None:
        self.t.scaler.unscale_(self.t.optimizer)

    def _measure(self) -> None:
        """Note each group's norm, once an update, before anything clips it."""
        if self.measured:
            return
        self.measured = True
        norms = [
            nn.utils.get_total_norm([p.grad for p in params if p.grad is not None]) for params in self.groups.values()
        ]
        self.seen.append(torch.stack([norm.to(self.t.pool.device) for norm in norms]))

    def clip(self, loss: Tensor) -> None:
        self._measure()
        for params in self.t.procedure.clipped(self.t.student, self.t.method):
            nn.utils.clip_grad_norm_(params, self.t.recipe.max_norm)

    def step(self, loss: Tensor) -> None:
        self._measure()
        self.t.scaler.step(self.t.optimizer)
        self.t.scaler.update()

    def read(self) -> tuple[dict[str, dict[str, float]], float, int]:
        """Return each group's mean and maximal norm since the last reading, the share clipped, the overflows."""
        seen = torch.stack(self.seen).double()
        self.seen.clear()
        columns = torch.cat([seen, seen.square().sum(1, keepdim=True).sqrt()], dim=1)
        steps = len(columns)
        self.t.first_norms += columns[: FIRST_STEPS - len(self.t.first_norms)].tolist()
        columns = columns[columns[:, -1].isfinite()].cpu()
        if not len(columns):
            columns = torch.full((1, columns.shape[1]), float("nan"))
            return self._named(columns), 0.0, steps
        clipped = (columns[:, -1] > self.t.recipe.max_norm).double().mean().item()
        return self._named(columns), clipped, steps - len(columns)

    def _named(self, columns: Tensor) -> dict[str, dict[str, float]]:
        names = [*self.groups, "all"]
        means, tops = columns.mean(0).tolist(), columns.amax(0).tolist()
        return {name: {"mean": m, "max": top} for name, m, top in zip(names, means, tops, strict=True)}


def _score(t: Training, ids: Tensor) -> float:
    logits = logits_of(t.student, t.batches(ids), t.pool.centre)
    return accuracy(logits, t.pool.labels[ids.to(t.pool.device)])


def _copy(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def weight_digest(*modules: nn.Module) -> str:
    """Return a digest of all parameters and buffers, equal only if they are bitwise equal."""
    digest = hashlib.sha256()
    for module in modules:
        for name, value in module.state_dict().items():
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
