# Mean teacher on vibration windows: few labels, many unlabelled, EMA with a ramped decay
import copy
import math
import torch
from torch import nn
import torch.nn.functional as F

torch.set_num_threads(1)
torch.manual_seed(24)
g = torch.Generator().manual_seed(24)
LEN, FAULTS = 48, 5


def vibration(n):
    y = torch.randint(0, FAULTS, (n,), generator=g)
    t = torch.arange(LEN) / LEN
    f = 3.0 + 1.5 * y[:, None]
    ph = 2 * math.pi * torch.rand(n, 2, generator=g)
    x = torch.sin(2 * math.pi * f * t + ph[:, :1]) + 0.6 * torch.sin(2 * math.pi * 2.2 * f * t + ph[:, 1:])
    return x + 1.0 * torch.randn(n, LEN, generator=g), y


class Net(nn.Module):
    def __init__(self, w=24):
        super().__init__()
        self.f = nn.Sequential(nn.Conv1d(1, w, 9, padding=4), nn.ReLU(), nn.Conv1d(w, w, 9, stride=2, padding=4), nn.ReLU())
        self.out = nn.Linear(w, FAULTS)

    def forward(self, x):
        return self.out(self.f(x[:, None]).mean(-1))


class EMAModel:
    """shadow copy; the decay ramps up to `decay` over the first updates"""

    def __init__(self, model, decay=0.99):
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay
        self.optimization_step = 0

    @torch.no_grad()
    def step(self, model):
        self.optimization_step += 1
        ramp = (1 + self.optimization_step) / (10 + self.optimization_step)
        decay = min(self.decay, ramp)
        for shadow, p in zip(self.model.parameters(), model.parameters()):
            shadow.sub_((1 - decay) * (shadow - p))
        return decay


def gap(a, b):
    with torch.no_grad():
        return sum((p - q).pow(2).sum() for p, q in zip(a.parameters(), b.parameters())).sqrt().item()


@torch.no_grad()
def acc(net, x, y):
    return (net(x).argmax(1) == y).float().mean().item()


lab_x, lab_y = vibration(60)
unl_x, _ = vibration(2000)
val_x, val_y = vibration(800)
student = Net()
ema = EMAModel(student)
opt = torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9)
for step in range(1, 401):
    student.train()
    i = torch.randint(0, len(lab_x), (16,), generator=g)
    j = torch.randint(0, len(unl_x), (32,), generator=g)
    noise = 0.5 * torch.randn(2, 32, LEN, generator=g)
    with torch.no_grad():
        goal = F.softmax(ema.model(unl_x[j] + noise[0]), 1)
    sup = F.cross_entropy(student(lab_x[i]), lab_y[i])
    cons = F.mse_loss(F.softmax(student(unl_x[j] + noise[1]), 1), goal)
    weight = 20.0 * min(1.0, step / 150)
    opt.zero_grad()
    (sup + weight * cons).backward()
    nn.utils.clip_grad_norm_(student.parameters(), 2.0)
    opt.step()
    decay = ema.step(student)
    if step % 80 == 0:
        student.eval()
        print(f"step {step} sup {sup.item():.3f} cons {cons.item():.4f} decay {decay:.3f} gap {gap(student, ema.model):.4f} "
              f"val student {acc(student, val_x, val_y):.3f} teacher {acc(ema.model, val_x, val_y):.3f}")
