"""Members of the clean zoo: losses."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench import audits
from kdbench.harness.zoo.clean.material import CLASSES, STEPS, WIDTH, ConvNet, T, images, kl, loaded, mlp, normed, rows
from kdbench.harness.zoo.clean.registry import Open, member


@contextmanager
def _steps(
    watch: Open, student: nn.Module, teacher: nn.Module, draw: Callable[[], tuple[Tensor, Tensor]] = rows
) -> Iterator[Iterator[tuple[Tensor, Tensor, Callable[[Tensor], None]]]]:
    """Hand out batches and what is done with their loss: for members that differ in it."""
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9)

    def descend(loss: Tensor) -> None:
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    with watch(student=student, teacher=teacher, optimizer=optimizer):
        yield ((*draw(), descend) for _ in range(STEPS))


@member(waived={"KD312": "the mean over batch and classes is DeiT's own recipe, and its weight is tuned to it"})
def deit_style_mean(watch: Open) -> nn.Module:
    teacher, student = loaded("mlp"), mlp()
    with _steps(watch, student, teacher) as steps:
        for x, y, descend in steps:
            with torch.no_grad():
                answer = teacher(x)
            logits = student(x)
            p, q = F.log_softmax(logits / 3, 1), F.log_softmax(answer / 3, 1)
            soft = F.kl_div(p, q, reduction="sum", log_target=True) * 9 / logits.numel()
            descend(0.5 * F.cross_entropy(logits, y) + 0.5 * soft)
    return student


@member()
def standardised_logits(watch: Open) -> nn.Module:
    teacher, student = loaded("mlp"), mlp()

    def standardise(z: Tensor) -> Tensor:
        return (z - z.mean(1, keepdim=True)) / (z.std(1, keepdim=True) + 1e-7)

    with _steps(watch, student, teacher) as steps:
        for x, y, descend in steps:
            with torch.no_grad():
                answer = teacher(x)
            logits = student(x)
            descend(0.1 * F.cross_entropy(logits, y) + 9 * kl(standardise(logits), standardise(answer), 2.0))
    return student


@member()
def decoupled_loss(watch: Open) -> nn.Module:
    """Decoupled KD: the target class against the rest, and the rest among themselves."""
    teacher, student = loaded("mlp"), mlp()
    with _steps(watch, student, teacher) as steps:
        for x, y, descend in steps:
            with torch.no_grad():
                answer = teacher(x)
            logits = student(x)
            mask = F.one_hot(y, CLASSES).bool()
            p, q = (logits / T).softmax(1), (answer / T).softmax(1)
            pairs = [torch.stack([(r * mask).sum(1), (r * ~mask).sum(1)], 1) for r in (p, q)]
            target = F.kl_div(pairs[0].log(), pairs[1], reduction="sum") * T**2 / len(y)
            others = F.kl_div(
                F.log_softmax(logits / T - 1000.0 * mask, 1),
                F.softmax(answer / T - 1000.0 * mask, 1),
                reduction="sum",
            )
            descend(F.cross_entropy(logits, y) + target + 2.0 * others * T**2 / len(y))
    return student


@member()
def hard_labels(watch: Open) -> nn.Module:
    teacher, student = loaded("mlp"), mlp()
    with _steps(watch, student, teacher) as steps:
        for x, y, descend in steps:
            with torch.no_grad():
                decided = teacher(x).argmax(1)
            logits = student(x)
            descend(0.5 * F.cross_entropy(logits, y) + 0.5 * F.cross_entropy(logits, decided))
    return student


@member()
def mixed_labels(watch: Open) -> nn.Module:
    """Mixup: samples and their one-hot labels are mixed alike, and both networks are shown the mixture."""
    teacher, student = loaded("mlp"), mlp()
    beta = torch.distributions.Beta(0.8, 0.8)
    with _steps(watch, student, teacher) as steps:
        for x, y, descend in steps:
            share, other = beta.sample(), torch.randperm(len(x))
            x = share * x + (1 - share) * x[other]
            hot = F.one_hot(y, CLASSES).float()
            target = share * hot + (1 - share) * hot[other]
            with torch.no_grad():
                answer = teacher(x)
            logits = student(x)
            descend(0.5 * F.cross_entropy(logits, target) + 0.5 * kl(logits, answer))
    return student


@member()
def smoothed_labels(watch: Open) -> nn.Module:
    teacher, student = loaded("mlp"), mlp()
    criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
    with _steps(watch, student, teacher) as steps:
        for x, y, descend in steps:
            with torch.no_grad():
                answer = teacher(x)
            logits = student(x)
            descend(0.5 * criterion(logits, y) + 0.5 * kl(logits, answer))
    return student


@member()
def ramped_weight(watch: Open) -> nn.Module:
    """The distillation's weight rises from zero, and the labels' falls from one."""
    teacher, student = loaded("mlp"), mlp()
    with _steps(watch, student, teacher) as steps:
        for step, (x, y, descend) in enumerate(steps):
            with torch.no_grad():
                answer = teacher(x)
            logits, alpha = student(x), min(1.0, step / 8)
            descend((1 - alpha) * F.cross_entropy(logits, y) + alpha * kl(logits, answer))
    return student


@member()
def learned_temperature(watch: Open) -> nn.Module:
    teacher, student = loaded("mlp"), mlp()
    heat = nn.Parameter(torch.tensor(1.2))
    optimizer = torch.optim.SGD([{"params": student.parameters()}, {"params": [heat], "lr": 0.01}], lr=0.05)
    with watch(student=student, teacher=teacher, optimizer=optimizer):
        for _ in range(STEPS):
            x, y = rows()
            with torch.no_grad():
                answer = teacher(x)
            logits, t = student(x), heat.exp()
            soft = F.kl_div((logits / t).log_softmax(1), (answer / t).softmax(1), reduction="batchmean")
            loss = 0.5 * F.cross_entropy(logits, y) + 0.5 * soft * t**2
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return student


class Tagger(nn.Module):
    """A label for each word, from the word and its neighbours."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.words, self.mix = nn.Embedding(20, width), nn.GRU(width, width, batch_first=True)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.mix(self.words(x))[0])


@member()
def tokens_with_padding(watch: Open) -> nn.Module:
    """Loss and distillation leave out the padded places, whose label is -100."""

    def draw() -> tuple[Tensor, Tensor]:
        x = torch.randint(0, 20, (16, 6))
        return x, torch.where(torch.arange(6) < torch.randint(2, 7, (16, 1)), x // 4, -100)

    teacher, student = Tagger(16), Tagger(8)
    for_teacher = torch.optim.Adam(teacher.parameters(), lr=3e-2)
    for _ in range(12):
        x, y = draw()
        for_teacher.zero_grad()
        F.cross_entropy(teacher(x).flatten(0, 1), y.flatten(), ignore_index=-100).backward()
        for_teacher.step()
    teacher.eval()
    with _steps(watch, student, teacher, draw) as steps:
        for x, y, descend in steps:
            with torch.no_grad():
                answer = teacher(x)
            logits, real = student(x), y != -100
            label = F.cross_entropy(logits.view(-1, CLASSES), y.view(-1), ignore_index=-100)
            descend(0.5 * label + 0.5 * kl(logits[real], answer[real]))
    return student


class Discriminator(nn.Module):
    """Tells a teacher's answers from a student's."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(CLASSES, 16), nn.LeakyReLU(0.2), nn.Linear(16, 1))

    def forward(self, z: Tensor) -> Tensor:
        return self.net(z).squeeze(1)


@member()
def adversarial_pair(watch: Open) -> nn.Module:
    teacher, student, judge = loaded("mlp"), mlp(), Discriminator()
    for_student = torch.optim.Adam(student.parameters(), lr=1e-2)
    for_judge = torch.optim.Adam(judge.parameters(), lr=1e-3)
    with watch(student=student, teacher=teacher, projectors={"judge": judge}, optimizer=[for_student, for_judge]):
        for _ in range(STEPS):
            x, y = rows()
            with torch.no_grad():
                answer = teacher(x)
            logits = student(x)
            told = torch.cat([judge(answer), judge(logits.detach())])
            truth = torch.cat([torch.ones(len(x)), torch.zeros(len(x))])
            for_judge.zero_grad()
            F.binary_cross_entropy_with_logits(told, truth).backward()
            for_judge.step()
            fooled = F.binary_cross_entropy_with_logits(judge(logits), torch.ones(len(x)))
            loss = 0.5 * F.cross_entropy(logits, y) + 0.5 * kl(logits, answer) + 0.1 * fooled
            for_student.zero_grad()
            loss.backward()
            for_student.step()
    return student


class Contrast(nn.Module):
    """Contrast with a memory: both embeddings of a sample belong together, those of others do not."""

    def __init__(self, samples: int) -> None:
        super().__init__()
        self.of_student, self.of_teacher = nn.Linear(12, 8), nn.Linear(20, 8)
        self.register_buffer("memory_student", F.normalize(torch.randn(samples, 8), dim=1))
        self.register_buffer("memory_teacher", F.normalize(torch.randn(samples, 8), dim=1))

    def forward(self, student: Tensor, teacher: Tensor, ids: Tensor) -> Tensor:
        s, t = F.normalize(self.of_student(student), dim=1), F.normalize(self.of_teacher(teacher), dim=1)
        others = torch.randint(0, len(self.memory_teacher), (len(ids), 16))
        chosen = torch.cat([ids[:, None], others], 1)
        near = torch.bmm(self.memory_teacher[chosen].clone(), s[:, :, None]).squeeze(2) / 0.1
        also = torch.bmm(self.memory_student[chosen].clone(), t[:, :, None]).squeeze(2) / 0.1
        with torch.no_grad():
            for memory, now in ((self.memory_student, s), (self.memory_teacher, t)):
                memory[ids] = F.normalize(0.5 * memory[ids] + 0.5 * now, dim=1)
        return -near.log_softmax(1)[:, 0].mean() - also.log_softmax(1)[:, 0].mean()


@member()
def contrast_with_memory(watch: Open) -> nn.Module:
    x, y = images(96)
    teacher, student, contrast = loaded("convnet"), ConvNet(), Contrast(96)
    optimizer = torch.optim.SGD([*student.parameters(), *contrast.parameters()], lr=0.05, momentum=0.9)
    with watch(student=student, teacher=teacher, projectors=contrast, optimizer=optimizer):
        for ids in torch.randint(0, 96, (STEPS, 16)):
            with torch.no_grad():
                hint = teacher.features(x[ids])
            hidden = student.features(x[ids])
            loss = F.cross_entropy(student.head(hidden), y[ids])
            loss = loss + 0.5 * contrast(hidden.mean((2, 3)), hint.mean((2, 3)), ids)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return student


@member()
def relations(watch: Open) -> nn.Module:
    """Relational KD: pairwise distances of features, each side over its own mean."""
    teacher, student = loaded("convnet"), ConvNet()

    def distances(feature: Tensor) -> Tensor:
        d = torch.cdist(feature, feature)
        return d / d[d > 0].mean()

    with _steps(watch, student, teacher, images) as steps:
        for x, y, descend in steps:
            with torch.no_grad():
                wanted = distances(teacher.features(x).flatten(1))
            hidden = student.features(x)
            relation = F.smooth_l1_loss(distances(hidden.flatten(1)), wanted)
            descend(F.cross_entropy(student.head(hidden), y) + 5 * relation)
    return student


@member()
def attention(watch: Open) -> nn.Module:
    """Attention transfer: where the features of both are strong, whatever their channels."""
    teacher, student = loaded("convnet"), ConvNet()

    def attend(feature: Tensor) -> Tensor:
        return F.normalize(feature.pow(2).mean(1).flatten(1))

    with _steps(watch, student, teacher, images) as steps:
        for x, y, descend in steps:
            hidden = student.features(x)
            with torch.no_grad():
                wanted = attend(teacher.features(x))
            descend(F.cross_entropy(student.head(hidden), y) + 50 * (attend(hidden) - wanted).pow(2).mean())
    return student


@member()
def hints_alone(watch: Open) -> nn.Module:
    """FitNets' first stage: features only, no label loss; the student's head waits."""
    teacher, student, projector = loaded("convnet"), ConvNet(), nn.Conv2d(12, 20, 1)
    optimizer = torch.optim.Adam([*student.features.parameters(), *projector.parameters()], lr=1e-2)
    with watch(student=student, teacher=teacher, projectors=projector, optimizer=optimizer):
        for _ in range(STEPS):
            x, _ = images()
            with torch.no_grad():
                hint = teacher.features(x)
            loss = F.mse_loss(projector(student.features(x)), hint)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return student


class LowRank(nn.Module):
    """A frozen linear layer with a trained update of low rank."""

    def __init__(self, base: nn.Linear, rank: int = 2) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Parameter(torch.randn(rank, base.in_features) / 4)
        self.up = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.base(x) + x @ self.down.T @ self.up.T
        return answer


@member()
def low_rank_student_without_labels(watch: Open) -> nn.Module:
    """Frozen layers within the student are no teacher, and no label loss says who the student is."""
    teacher, student = loaded("mlp"), mlp()
    student[0] = LowRank(student[0])
    optimizer = torch.optim.Adam([p for p in student.parameters() if p.requires_grad], 1e-2)
    with watch(student=student, teacher=teacher, optimizer=optimizer, kd=audits.KD(temperature=T, kd_weight=1.0)):
        for _ in range(STEPS):
            x, _ = rows()
            with torch.no_grad():
                answer = teacher(x)
            loss = kl(student(x), answer)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return student


@member(waived={"KD313": "mode-seeking on purpose, as on-policy distillation of language models does it"})
def reversed_on_purpose(watch: Open) -> nn.Module:
    teacher, student = loaded("mlp"), mlp()
    with _steps(watch, student, teacher, rows) as steps:
        for x, y, descend in steps:
            logits = student(x)
            with torch.no_grad():
                answer = teacher(x)
            log_s, log_t = F.log_softmax(logits, 1), F.log_softmax(answer, 1)
            backwards = F.kl_div(log_t, log_s, reduction="batchmean", log_target=True)
            descend(F.cross_entropy(logits, y) + 0.5 * backwards)
    return student


@member()
def teacher_of_loose_tensors(watch: Open) -> nn.Module:
    """The teacher's weights are a dictionary of half precision; the module they are run through has none."""
    shell, student = mlp().to("meta").eval(), normed()
    weights = {name: value.half() for name, value in loaded("mlp").state_dict().items()}
    optimizer = torch.optim.Adam(student.parameters(), 5e-3)
    with watch(student=student, optimizer=optimizer):
        for _ in range(STEPS):
            x, y = rows()
            with torch.no_grad():
                answer = torch.func.functional_call(shell, {n: w.float() for n, w in weights.items()}, (x,))
            logits = student(x)
            loss = 0.5 * F.cross_entropy(logits, y) + 0.5 * kl(logits, answer)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return student


class Detector(nn.Module):
    """Classes and boxes from one body."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.classes, self.boxes = nn.Linear(WIDTH, 16), nn.Linear(16, CLASSES), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.body(x).relu()
        return self.classes(hidden), self.boxes(hidden)


@member()
def boxes_beside_classes(watch: Open) -> nn.Module:
    """The teacher's own training on boxes is no distillation from stored answers."""
    teacher, student = Detector(), Detector()
    place = torch.randn(WIDTH, 4)

    def fit(net: Detector, extra: Callable[[Tensor, Tensor, Tensor], Tensor | float]) -> torch.optim.Optimizer:
        optimizer = torch.optim.Adam(net.parameters(), 5e-3)
        for _ in range(STEPS):
            x, y = rows()
            logits, box = net(x)
            loss = F.cross_entropy(logits, y) + F.smooth_l1_loss(box, x @ place) + extra(x, logits, box)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return optimizer

    def taught(x: Tensor, logits: Tensor, box: Tensor) -> Tensor:
        with torch.no_grad():
            answer, wanted = teacher(x)
        return kl(logits, answer) + F.smooth_l1_loss(box, wanted)

    fitted = fit(teacher, lambda *_: 0.0)
    teacher.eval()
    with watch(student=student, teacher=teacher, optimizer=fitted):
        fit(student, taught)
    return student
