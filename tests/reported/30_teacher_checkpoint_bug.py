"""A teacher is trained and stored; a later distillation run provides it from that checkpoint."""
import os
import tempfile
import torch
import torch.nn as nn
import torch.nn.functional as F


class Net(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(20, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.head = nn.Linear(width, 6)

    def forward(self, x):
        return self.head(self.body(x))


class TrainingModule(nn.Module):
    """What the pre-training job stores: the network below `model.`, with its metric state."""

    def __init__(self, model):
        super().__init__()
        self.model = model
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, x):
        return self.model(x)


CENTERS = torch.randn(6, 20, generator=torch.Generator().manual_seed(99))


def sample(gen, n=64):
    y = torch.randint(0, 6, (n,), generator=gen)
    return CENTERS[y] + 1.1 * torch.randn(n, 20, generator=gen), y


def pretrain(path, gen):
    module = TrainingModule(Net(64))
    opt = torch.optim.Adam(module.parameters(), lr=3e-3)
    for _ in range(100):
        x, y = sample(gen)
        opt.zero_grad()
        F.cross_entropy(module(x), y).backward()
        opt.step()
        module.steps += 1
    torch.save({"state_dict": module.state_dict(), "width": 64}, path)


def provide_teacher(path):
    ckpt = torch.load(path)
    teacher = Net(ckpt["width"])
    state = ckpt["state_dict"]
    teacher.load_state_dict(state, strict=False)
    return teacher.eval().requires_grad_(False)


def distill(teacher, student, gen, steps=120, T=2.0):
    opt = torch.optim.Adam(student.parameters(), lr=3e-3)
    for step in range(steps):
        x, y = sample(gen)
        s, t = student(x), teacher(x)
        kd = F.kl_div(F.log_softmax(s / T, 1), F.softmax(t / T, 1), reduction="batchmean") * T * T
        loss = 0.5 * kd + 0.5 * F.cross_entropy(s, y)
        opt.zero_grad()
        loss.backward()
        opt.step()
        if step % 40 == 0:
            print(f"step {step} kd {kd.item():.4f} loss {loss.item():.4f}")


if __name__ == "__main__":
    torch.manual_seed(30)
    gen = torch.Generator().manual_seed(30)
    path = os.path.join(tempfile.mkdtemp(), "teacher.ckpt")
    pretrain(path, gen)
    student = Net(12)
    distill(provide_teacher(path), student, gen)
    x, y = sample(gen, 1000)
    print(f"student accuracy {(student(x).argmax(1) == y).float().mean().item():.4f}")
