"""Half-precision distillation of a load forecaster with gradient clipping (GradScaler on CPU)."""
import math
import torch
import torch.nn as nn
import torch.nn.functional as F

SEED, HIST, AHEAD, CLIP = 14, 48, 12, 1.0


def load_curves(n, g):
    """daily cycle + weekly cycle + a random walk; returns history and the hours ahead"""
    t = torch.arange(HIST + AHEAD)[None] + torch.randint(0, 168, (n, 1), generator=g)
    amp = 0.5 + torch.rand(n, 2, generator=g)
    curve = amp[:, :1] * torch.sin(2 * math.pi * t / 24) + amp[:, 1:] * torch.cos(2 * math.pi * t / 84)
    curve = curve + 0.05 * torch.randn(n, HIST + AHEAD, generator=g).cumsum(1)
    return curve[:, :HIST], curve[:, HIST:]


class ConvForecaster(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv = nn.Sequential(nn.Conv1d(1, width, 5, 2, 2), nn.GELU(), nn.Conv1d(width, width, 5, 2, 2), nn.GELU())
        self.head = nn.Linear(width * HIST // 4, AHEAD)

    def forward(self, x):
        return self.head(self.conv(x[:, None]).flatten(1))


def batch_stream(data, size, g):
    n = len(data[0])
    while True:
        for idx in torch.randperm(n, generator=g).split(size):
            if len(idx) == size:
                yield tuple(d[idx] for d in data)


def train_teacher(data, g, steps=300):
    net, stream = ConvForecaster(32), batch_stream(data, 64, g)
    opt = torch.optim.Adam(net.parameters(), lr=2e-3)
    for _ in range(steps):
        x, y = next(stream)
        opt.zero_grad()
        F.mse_loss(net(x), y).backward()
        opt.step()
    return net.eval().requires_grad_(False)


def distill(student, teacher, data, val, g, steps=400, beta=0.7):
    opt = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0 ** 12)
    stream = batch_stream(data, 64, g)
    student.train()
    for step in range(1, steps + 1):
        x, y = next(stream)
        with torch.autocast("cpu", dtype=torch.float16):
            pred = student(x)
            with torch.no_grad():
                ref = teacher(x)
        loss = beta * F.mse_loss(pred.float(), ref.float()) + (1 - beta) * F.mse_loss(pred.float(), y)
        opt.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()
        norm = nn.utils.clip_grad_norm_(student.parameters(), CLIP)
        scaler.step(opt)
        scaler.update()
        if step % 80 == 0:
            student.eval()
            with torch.no_grad():
                v = F.mse_loss(student(val[0]), val[1]).item()
            student.train()
            print(f"step {step} loss {loss.item():.4f} grad norm {norm.item():.3f} "
                  f"scale {scaler.get_scale():.0f} val mse {v:.4f}")


if __name__ == "__main__":
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    g = torch.Generator().manual_seed(SEED)
    train, val = load_curves(3000, g), load_curves(600, g)
    teacher = train_teacher(train, g)
    with torch.no_grad():
        print(f"teacher val mse {F.mse_loss(teacher(val[0]), val[1]).item():.4f}")
    distill(ConvForecaster(6), teacher, train, val, g)
