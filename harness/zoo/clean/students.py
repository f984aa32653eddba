"""Members of the clean zoo: students."""

import io
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.utils.checkpoint import checkpoint as recompute

from kdbench.harness.zoo.clean.material import (
    CLASSES,
    STEPS,
    WIDTH,
    ConvNet,
    Encoder,
    T,
    checkpoint,
    distil,
    images,
    kl,
    loaded,
    mlp,
    normed,
    rows,
    tokens,
    trained,
)
from kdbench.harness.zoo.clean.registry import Open, member


@member()
def frozen_layers(watch: Open) -> nn.Module:
    student = trained(mlp())
    student[0].requires_grad_(False)
    optimizer = torch.optim.SGD([p for p in student.parameters() if p.requires_grad], lr=0.1, momentum=0.9)
    return distil(watch, student, loaded("mlp"), optimizer)


@member()
def frozen_layers_in_the_optimizer(watch: Open) -> nn.Module:
    student = trained(mlp())
    optimizer = torch.optim.AdamW(student.parameters(), lr=3e-3)
    for p in student[0].parameters():
        p.requires_grad = False
    return distil(watch, student, loaded("mlp"), optimizer)


@member()
def frozen_batch_norm(watch: Open) -> nn.Module:
    """A pretrained student whose batch norms keep their statistics while the rest trains."""
    teacher, student = loaded("convnet"), trained(ConvNet(), images)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.02, momentum=0.9)
    with watch(student=student, teacher=teacher, optimizer=optimizer):
        student.train()
        for module in student.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        for _ in range(STEPS):
            x, y = images()
            with torch.no_grad():
                answer = teacher(x)
            logits = student(x)
            loss = 0.5 * F.cross_entropy(logits, y) + 0.5 * kl(logits, answer)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return student


class TwoBranches(nn.Module):
    """Of two hidden layers one is dead: its gradients are zero, and it never moves."""

    def __init__(self) -> None:
        super().__init__()
        self.alive, self.dead = nn.Linear(WIDTH, 12), nn.Linear(WIDTH, 4)
        nn.init.constant_(self.dead.bias, -100.0)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cat([self.alive(x).relu(), self.dead(x).relu()], 1))


@member()
def dead_units(watch: Open) -> nn.Module:
    student = TwoBranches()
    return distil(watch, student, loaded("mlp"), torch.optim.SGD(student.parameters(), 0.1, momentum=0.9))


@member()
def compiled_student_eager(watch: Open) -> nn.Module:
    student = normed()
    compiled = torch.compile(student, backend="eager")
    optimizer = torch.optim.SGD(compiled.parameters(), lr=0.1, momentum=0.9)
    return distil(watch, compiled, loaded("normed"), optimizer)


@member()
def compiled_student_aot(watch: Open) -> nn.Module:
    student = mlp()
    compiled = torch.compile(student, backend="aot_eager")
    return distil(watch, compiled, loaded("mlp"), torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9))


class Residual(nn.Module):
    """In-place arithmetic right behind modules, and a module that hands out what it stores."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = nn.Linear(WIDTH, width)
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)
        self.act = nn.ReLU(inplace=True)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.stem(x))
        out = self.second(self.act(self.first(x)))
        out += x
        out *= 0.9
        out = F.relu_(out)
        return self.head(out).clamp_(-50, 50)


@member()
def in_place_arithmetic(watch: Open) -> nn.Module:
    """With features of both taken by hooks of the user's."""
    teacher, student, projector = trained(Residual(24)), Residual(16), nn.Linear(16, 24)
    kept: dict[str, Tensor] = {}
    teacher.second.register_forward_hook(lambda module, args, out: kept.__setitem__("teacher", out.clone()))
    student.second.register_forward_hook(lambda module, args, out: kept.__setitem__("student", out.clone()))
    optimizer = torch.optim.SGD([*student.parameters(), *projector.parameters()], lr=0.05, momentum=0.9)
    with watch(student=student, teacher=teacher, projectors=projector, optimizer=optimizer):
        for _ in range(STEPS):
            x, y = rows()
            with torch.no_grad():
                answer = teacher(x)
            logits = student(x)
            loss = 0.5 * F.cross_entropy(logits, y) + 0.5 * kl(logits, answer)
            loss += 0.1 * F.mse_loss(projector(kept["student"]), kept["teacher"])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return student


class Swish(torch.autograd.Function):
    """x * sigmoid(x), with its own backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x.sigmoid()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        s = x.sigmoid()
        return grad * s * (1 + x * (1 - s))


class SwishNet(nn.Module):
    """A network with a custom function in it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(WIDTH, width), nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(Swish.apply(self.first(x)))


@member()
def custom_function_in_the_network(watch: Open) -> nn.Module:
    teacher, student = trained(SwishNet(24)), SwishNet(12)
    return distil(watch, student, teacher, torch.optim.Adam(student.parameters(), lr=1e-2))


class SoftCrossEntropy(torch.autograd.Function):
    """Cross-entropy against the teacher's softened answer, with its own backward."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, answer: Tensor) -> Tensor:
        target = (answer / T).softmax(1)
        ctx.save_for_backward(logits, target)
        return -(target * (logits / T).log_softmax(1)).sum(1).mean() * T * T

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        logits, target = ctx.saved_tensors
        return grad * T * ((logits / T).softmax(1) - target) / len(logits), None


@member()
def custom_function_in_the_loss(watch: Open) -> nn.Module:
    teacher, student = loaded("mlp"), mlp()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9)
    with watch(student=student, teacher=teacher, optimizer=optimizer):
        for _ in range(STEPS):
            x, y = rows()
            with torch.no_grad():
                answer = teacher(x)
            logits = student(x)
            loss = 0.5 * F.cross_entropy(logits, y) + 0.5 * SoftCrossEntropy.apply(logits, answer)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return student


class Recomputed(nn.Module):
    """A network whose first block is computed again in the backward."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.reentrant = reentrant
        self.block = nn.Sequential(nn.Linear(WIDTH, 16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 16), nn.ReLU())
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            x = x.requires_grad_() if self.reentrant else x  # the reentrant kind wants an input with a gradient
            return self.head(recompute(self.block, x, use_reentrant=self.reentrant))
        return self.head(self.block(x))


@member()
def checkpointing_reentrant(watch: Open) -> nn.Module:
    student = Recomputed(True)
    return distil(watch, student, loaded("mlp"), torch.optim.Adam(student.parameters(), lr=1e-2))


@member()
def checkpointing(watch: Open) -> nn.Module:
    student = Recomputed(False)
    return distil(watch, student, loaded("mlp"), torch.optim.Adam(student.parameters(), lr=1e-2))


@member()
def pruned_student(watch: Open) -> nn.Module:
    """The student starts as the teacher without its smallest weights."""
    teacher, student = loaded("mlp"), loaded("mlp")
    for layer in (student[0], student[2]):
        prune.l1_unstructured(layer, "weight", amount=0.5)
    return distil(watch, student, teacher, torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9))


@member()
def student_from_the_checkpoint(watch: Open) -> nn.Module:
    """The student starts from the teacher's own checkpoint, to be pruned on the way."""
    teacher, student = loaded("mlp"), mlp(24)
    student.load_state_dict(torch.load(io.BytesIO(checkpoint("mlp"))))
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9)
    with watch(student=student, teacher=teacher, optimizer=optimizer):
        for step in range(STEPS):
            x, y = rows()
            with torch.no_grad():
                answer = teacher(x)
            logits = student(x)
            loss = 0.5 * F.cross_entropy(logits, y) + 0.5 * kl(logits, answer)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            weight = student[0].weight
            bound = weight.detach().abs().flatten().quantile(0.04 * step)
            weight.data[weight.detach().abs() < bound] = 0
    return student


@member()
def functional_call(watch: Open) -> nn.Module:
    teacher, student = loaded("normed"), normed()
    frozen = {name: value.detach() for name, value in teacher.state_dict().items()}
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9)
    with watch(student=student, teacher=teacher, optimizer=optimizer):
        for _ in range(STEPS):
            x, y = rows()
            answer = torch.func.functional_call(teacher, frozen, (x,))
            logits = torch.func.functional_call(student, dict(student.named_parameters()), (x,))
            loss = 0.5 * F.cross_entropy(logits, y) + 0.5 * kl(logits, answer)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return student


@member()
def functional_call_on_leaves(watch: Open) -> nn.Module:
    """What is trained are plain leaf tensors; the module is but its shape."""
    teacher, shape = loaded("mlp"), mlp()
    leaves = {name: p.detach().clone().requires_grad_() for name, p in shape.named_parameters()}
    optimizer = torch.optim.SGD(leaves.values(), lr=0.1, momentum=0.9)
    with watch(student=shape, teacher=teacher, optimizer=optimizer):
        for _ in range(STEPS):
            x, y = rows()
            with torch.no_grad():
                answer = teacher(x)
            logits = torch.func.functional_call(shape, leaves, (x,))
            loss = 0.5 * F.cross_entropy(logits, y) + 0.5 * kl(logits, answer)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    shape.load_state_dict(leaves)
    return shape


@member()
def forward_called_directly(watch: Open) -> nn.Module:
    teacher, student = loaded("normed"), normed()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9)
    with watch(student=student, teacher=teacher, optimizer=optimizer):
        for _ in range(STEPS):
            x, y = rows()
            with torch.no_grad():
                answer = teacher.forward(x)
            logits = student.forward(x)
            loss = 0.5 * F.cross_entropy(logits, y) + 0.5 * kl(logits, answer)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return student


@member()
def data_parallel(watch: Open) -> nn.Module:
    student = nn.DataParallel(ConvNet())
    teacher = nn.DataParallel(loaded("convnet"))
    return distil(watch, student, teacher, torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9), images)


@member()
def transformers(watch: Open) -> nn.Module:
    """The teacher in evaluation mode takes torch's fused path."""
    student = Encoder(8, 1)
    return distil(watch, student, loaded("encoder"), torch.optim.AdamW(student.parameters(), lr=5e-3), tokens)
