"""Members of the clean zoo: teachers."""

import copy
import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.utils.data import DataLoader, Dataset, TensorDataset

from kdbench.harness.zoo.clean.material import (
    CENTRES,
    CLASSES,
    STEPS,
    WIDTH,
    ConvNet,
    T,
    distil,
    images,
    kl,
    loaded,
    mlp,
    normed,
    rows,
    trained,
)
from kdbench.harness.zoo.clean.registry import Open, member


@member()
def born_again(watch: Open) -> nn.Module:
    """Teacher and student are of one architecture."""
    student = normed(24)
    return distil(watch, student, trained(normed(24)), torch.optim.SGD(student.parameters(), 0.1, momentum=0.9))


@member()
def mean_teacher(watch: Open) -> nn.Module:
    student = normed(dropout=0.0)
    teacher = copy.deepcopy(student).eval().requires_grad_(False)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9)
    with watch(student=student, teacher=teacher, optimizer=optimizer):
        for step in range(STEPS):
            x, y = rows()
            logits = student(x)
            consistency = F.mse_loss(logits.softmax(1), teacher(x).softmax(1))
            loss = F.cross_entropy(logits, y) + min(1.0, step / 5) * consistency
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                for slow, p in zip(teacher.parameters(), student.parameters(), strict=True):
                    slow.mul_(0.9).add_(p, alpha=0.1)
                for slow, buffer in zip(teacher.buffers(), student.buffers(), strict=True):
                    slow.copy_(buffer)
    return student


@member()
def mean_teacher_of_two_views(watch: Open) -> nn.Module:
    student = trained(mlp(), steps=4).train()
    teacher = copy.deepcopy(student)
    for p in teacher.parameters():
        p.detach_()
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-2)
    with watch(student=student, teacher=teacher, optimizer=optimizer):
        for step in range(STEPS):
            x, y = rows()
            logits = student(x + 0.1 * torch.randn_like(x))
            with torch.no_grad():
                target = teacher(x + 0.1 * torch.randn_like(x)).softmax(1)
            loss = F.cross_entropy(logits, y) + 0.5 * F.mse_loss(logits.softmax(1), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            decay = min(1 - 1 / (step + 2), 0.99)
            for slow, p in zip(teacher.parameters(), student.parameters(), strict=True):
                slow.data.mul_(decay).add_(p.data, alpha=1 - decay)
    return student


@member()
def averaged_model_as_teacher(watch: Open) -> nn.Module:
    """torch's own moving average teaches a student that has learned a little."""
    student = trained(mlp(), steps=6).train()
    average = torch.optim.swa_utils.AveragedModel(student, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9))
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9)
    with watch(student=student, teacher=average, optimizer=optimizer):
        for _ in range(STEPS):
            x, y = rows()
            with torch.no_grad():
                answer = average(x)
            logits = student(x)
            loss = F.cross_entropy(logits, y) + 0.5 * kl(logits, answer, 1.0)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            average.update_parameters(student)
    return student


@member()
def online_teacher(watch: Open) -> nn.Module:
    """The teacher learns from the labels in the same loop, ahead of the student."""
    teacher, student = mlp(24), mlp()
    for_teacher = torch.optim.Adam(teacher.parameters(), lr=2e-2)
    for_student = torch.optim.Adam(student.parameters(), lr=1e-2)
    with watch(student=student, teacher=teacher, optimizer=[for_student, for_teacher]):
        for _ in range(STEPS):
            x, y = rows()
            answer = teacher(x)
            for_teacher.zero_grad()
            F.cross_entropy(answer, y).backward()
            for_teacher.step()
            logits = student(x)
            loss = 0.5 * F.cross_entropy(logits, y) + 0.5 * kl(logits, answer.detach())
            for_student.zero_grad()
            loss.backward()
            for_student.step()
    return student


@member()
def online_teacher_in_one_loss(watch: Open) -> nn.Module:
    teacher, student = normed(24), normed()
    optimizer = torch.optim.Adam([*teacher.parameters(), *student.parameters()], lr=1e-2)
    with watch(student=student, teacher=teacher, optimizer=optimizer):
        for _ in range(STEPS):
            x, y = rows()
            answer, logits = teacher(x), student(x)
            loss = F.cross_entropy(answer, y) + F.cross_entropy(logits, y) + kl(logits, answer.detach())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return student


@member()
def mutual_peers(watch: Open) -> nn.Module:
    """Both losses are computed before either backward."""
    one, two = normed(16), normed(20)
    first = torch.optim.SGD(one.parameters(), lr=0.1, momentum=0.9)
    second = torch.optim.SGD(two.parameters(), lr=0.1, momentum=0.9)
    with watch(student=one, teacher=two, optimizer=[first, second]):
        for _ in range(STEPS):
            x, y = rows()
            a, b = one(x), two(x)
            loss_one = F.cross_entropy(a, y) + kl(a, b.detach(), 1.0)
            loss_two = F.cross_entropy(b, y) + kl(b, a.detach(), 1.0)
            first.zero_grad()
            loss_one.backward()
            first.step()
            second.zero_grad()
            loss_two.backward()
            second.step()
    return nn.ModuleList([one, two])


@member()
def mutual_peers_in_one_loss(watch: Open) -> nn.Module:
    one, two = mlp(16), mlp(20)
    optimizer = torch.optim.SGD([*one.parameters(), *two.parameters()], lr=0.1, momentum=0.9)
    with watch(student=one, teacher=two, optimizer=optimizer):
        for _ in range(STEPS):
            x, y = rows()
            a, b = one(x), two(x)
            loss = F.cross_entropy(a, y) + F.cross_entropy(b, y)
            loss = loss + kl(a, b.detach(), 1.0) + kl(b, a.detach(), 1.0)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return nn.ModuleList([one, two])


class Exits(nn.Module):
    """A network with a classifier behind each of three blocks."""

    def __init__(self) -> None:
        super().__init__()
        widths = (WIDTH, 16, 16, 16)
        self.blocks = nn.ModuleList(nn.Linear(i, o) for i, o in itertools.pairwise(widths))
        self.exits = nn.ModuleList(nn.Linear(16, CLASSES) for _ in self.blocks)

    def forward(self, x: Tensor) -> list[Tensor]:
        answers = []
        for block, leave in zip(self.blocks, self.exits, strict=True):
            x = block(x).relu()
            answers.append(leave(x))
        return answers


@member()
def self_distillation(watch: Open) -> nn.Module:
    student = Exits()
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-2)
    with watch(student=student, optimizer=optimizer):
        for _ in range(STEPS):
            x, y = rows()
            *early, last = student(x)
            loss = F.cross_entropy(last, y)
            for logits in early:
                loss = loss + 0.7 * F.cross_entropy(logits, y) + 0.3 * kl(logits, last.detach())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return student


@member()
def two_dropouts(watch: Open) -> nn.Module:
    """R-Drop: two answers of one network under different dropout are drawn together."""
    student = normed(dropout=0.3)
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-2)
    with watch(student=student, optimizer=optimizer):
        for _ in range(STEPS):
            x, y = rows()
            a, b = student(x), student(x)
            p, q = a.log_softmax(1), b.log_softmax(1)
            both = F.kl_div(p, q, reduction="batchmean", log_target=True)
            both = both + F.kl_div(q, p, reduction="batchmean", log_target=True)
            loss = 0.5 * (F.cross_entropy(a, y) + F.cross_entropy(b, y)) + 0.5 * both
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return student


class Preprocessed(nn.Module):
    """A network behind its own normalisation."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.register_buffer("mean", torch.full((1, 3, 1, 1), 0.1))
        self.register_buffer("std", torch.tensor([0.9, 1.1, 1.0]).view(1, 3, 1, 1))
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net((x - self.mean) / self.std)


@member()
def teacher_with_its_own_normalisation(watch: Open) -> nn.Module:
    teacher, student = trained(Preprocessed(ConvNet(10)), images), ConvNet()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9)
    return distil(watch, student, teacher.requires_grad_(False), optimizer, images)


@member()
def teacher_in_half_precision(watch: Open) -> nn.Module:
    teacher, student = loaded("mlp").bfloat16().requires_grad_(False), mlp()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9)
    with watch(student=student, teacher=teacher, optimizer=optimizer):
        for _ in range(STEPS):
            x, y = rows()
            answer = teacher(x.bfloat16()).float()
            logits = student(x)
            loss = 0.5 * F.cross_entropy(logits, y) + 0.5 * kl(logits, answer)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return student


@member()
def teacher_called_part_by_part(watch: Open) -> nn.Module:
    teacher, student = loaded("convnet"), ConvNet()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9)
    with watch(student=student, teacher=teacher, optimizer=optimizer):
        for _ in range(STEPS):
            x, y = images()
            with torch.no_grad():
                hidden = teacher.features(x)
                answer = teacher.head(hidden)
            logits = student.head(student.features(x))
            loss = 0.5 * F.cross_entropy(logits, y) + 0.5 * kl(logits, answer)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return student


@member()
def ensemble(watch: Open) -> nn.Module:
    """The target is the mean of two teachers' softened probabilities."""
    teachers = nn.ModuleList([loaded("mlp"), trained(normed(24))])
    student = mlp()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9)
    with watch(student=student, teacher=teachers, optimizer=optimizer):
        for _ in range(STEPS):
            x, y = rows()
            with torch.inference_mode():
                target = torch.stack([(teacher(x) / T).softmax(1) for teacher in teachers]).mean(0)
            logits = student(x)
            soft = F.kl_div((logits / T).log_softmax(1), target.clone(), reduction="batchmean") * T * T
            loss = 0.5 * F.cross_entropy(logits, y) + 0.5 * soft
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return student


@member()
def cached_answers(watch: Open) -> nn.Module:
    """The teacher answers once; its answers are kept by sample id, and the ids are shuffled with their samples."""
    x, y = rows(160)
    teacher, student = loaded("mlp"), mlp()
    with torch.no_grad():
        answers = {i: teacher(x[i : i + 1])[0] for i in range(len(x))}
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9)
    with watch(student=student, optimizer=optimizer):
        for _ in range(3):
            for ids in torch.randperm(len(x)).split(32):
                logits = student(x[ids])
                answer = torch.stack([answers[i] for i in ids.tolist()])
                loss = 0.5 * F.cross_entropy(logits, y[ids]) + 0.5 * kl(logits, answer)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    return student


@member()
def learning_without_forgetting(watch: Open) -> nn.Module:
    """The student's former self keeps the old head in place while a new head learns other classes."""
    body, old = nn.Sequential(nn.Linear(WIDTH, 24), nn.ReLU()), nn.Linear(24, CLASSES)
    trained(nn.Sequential(body, old))
    teacher = copy.deepcopy(nn.Sequential(body, old)).eval().requires_grad_(False)
    new, centres = nn.Linear(24, CLASSES), CENTRES.flip(1)
    student = nn.ModuleDict({"body": body, "old": old, "new": new})
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9)
    with watch(student=student, teacher=teacher, optimizer=optimizer):
        for _ in range(STEPS):
            y = torch.randint(0, CLASSES, (32,))
            x = centres[y] + torch.randn(32, WIDTH)
            hidden = body(x)
            loss = F.cross_entropy(new(hidden), y) + kl(old(hidden), teacher(x), 2.0)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return student


@member()
def class_increments(watch: Open) -> nn.Module:
    """Three classes are added to the head; on the old five the student is held to what it was."""
    before = trained(mlp(24))
    teacher = copy.deepcopy(before).requires_grad_(False)
    student = nn.Sequential(before[0], before[1], nn.Linear(24, CLASSES + 3))
    with torch.no_grad():
        student[2].weight[:CLASSES].copy_(before[2].weight)
        student[2].bias[:CLASSES].copy_(before[2].bias)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9)
    centres = CENTRES.flip(1)
    with watch(student=student, teacher=teacher, optimizer=optimizer):
        for _ in range(STEPS):
            y = torch.randint(CLASSES, CLASSES + 3, (32,))
            x = centres[y - CLASSES] + torch.randn(32, WIDTH)
            with torch.no_grad():
                answer = teacher(x)
            logits = student(x)
            loss = F.cross_entropy(logits, y) + kl(logits[:, :CLASSES], answer, 2.0)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return student


@member()
def evaluated_between_epochs(watch: Open) -> nn.Module:
    teacher, student = loaded("normed"), normed()
    test_x, test_y = rows(64)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9)
    with watch(student=student, teacher=teacher, optimizer=optimizer):
        for _ in range(3):
            student.train()
            for _ in range(5):
                x, y = rows()
                with torch.no_grad():
                    answer = teacher(x)
                logits = student(x)
                loss = 0.5 * F.cross_entropy(logits, y) + 0.5 * kl(logits, answer)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            for net in (teacher, student):
                net.eval()
                with torch.no_grad():
                    (net(test_x).argmax(1) == test_y).float().mean().item()
    return student


class Rows(Dataset):
    """Samples with their ids, augmented as they are read."""

    def __init__(self, n: int) -> None:
        self.x, self.y = rows(n)

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        return self.x[i] + 0.1 * torch.randn(WIDTH), self.y[i]


@member()
def loader_workers(watch: Open) -> nn.Module:
    teacher, student = loaded("mlp"), mlp()
    train, test = DataLoader(Rows(224), 32, shuffle=True, num_workers=2), DataLoader(TensorDataset(*rows(64)), 32)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9)
    with watch(student=student, teacher=teacher, optimizer=optimizer):
        for x, y in train:
            with torch.no_grad():
                answer = teacher(x)
            logits = student(x)
            loss = 0.5 * F.cross_entropy(logits, y) + 0.5 * kl(logits, answer)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            sum(int((student(x).argmax(1) == y).sum()) for x, y in test)
    return student


@member()
def one_frozen_backbone(watch: Open) -> nn.Module:
    """Two heads, of which one teaches the other, on the answers of a frozen network."""
    backbone = loaded("mlp")[:2].requires_grad_(False)

    def seen() -> tuple[Tensor, Tensor]:
        x, y = rows()
        with torch.no_grad():
            return backbone(x), y

    width = backbone[0].out_features
    teacher = trained(nn.Sequential(nn.Linear(width, 24), nn.ReLU(), nn.Linear(24, CLASSES)), seen)
    student = nn.Linear(width, CLASSES)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9)
    with watch(student=student, teacher=teacher, optimizer=optimizer):
        for _ in range(STEPS):
            features, y = seen()
            with torch.no_grad():
                answer = teacher(features)
            logits = student(features)
            loss = 0.5 * F.cross_entropy(logits, y) + 0.5 * kl(logits, answer)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return student


@member()
def data_free(watch: Open) -> nn.Module:
    """A generator looks for samples on which student and teacher disagree, and the student learns on them."""
    teacher, student = loaded("mlp").requires_grad_(False), mlp()
    generator = nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, WIDTH))
    of_generator = torch.optim.Adam(generator.parameters(), lr=0.01)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9)
    with watch(student=student, teacher=teacher, optimizer=[optimizer, of_generator]):
        for _ in range(STEPS):
            made = generator(torch.randn(32, 6))
            loss = -kl(student(made), teacher(made))
            of_generator.zero_grad()
            loss.backward()
            of_generator.step()
            made = generator(torch.randn(32, 6)).detach()
            loss = kl(student(made), teacher(made).detach())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return student


@member()
def no_distillation(watch: Open) -> nn.Module:
    student = normed()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9)
    with watch(student=student, optimizer=optimizer):
        for _ in range(STEPS):
            x, y = rows()
            optimizer.zero_grad()
            F.cross_entropy(student(x), y).backward()
            clip_grad_norm_(student.parameters(), 1.0)
            optimizer.step()
    return student
