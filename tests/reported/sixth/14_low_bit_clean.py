"""Quantisation-aware training guided by the network it was converted from."""
import io
import torch
import torch.nn as nn
import torch.nn.functional as F
from types import SimpleNamespace

cfg = SimpleNamespace(bits=2, width=48, steps=220, batch=64, tau=2.0, seed=13, load_low_bit=True)
torch.manual_seed(cfg.seed)


class FakeQuant(torch.autograd.Function):
    @staticmethod
    def forward(ctx, w, levels):
        scale = w.abs().amax(1, keepdim=True) / levels
        return (w / scale).round().clamp(-levels, levels) * scale

    @staticmethod
    def backward(ctx, g):
        return g, None


class QLinear(nn.Linear):
    levels = None

    def forward(self, x):
        w = self.weight if self.levels is None else FakeQuant.apply(self.weight, self.levels)
        return F.linear(x, w, self.bias)


def load_model(state=None, bits=None):
    net = nn.Sequential(QLinear(16, cfg.width), nn.ReLU(), QLinear(cfg.width, cfg.width), nn.ReLU(), QLinear(cfg.width, 10))
    if state is not None:
        state.seek(0)
        net.load_state_dict(torch.load(state))
    if bits is not None:
        for m in net:
            if isinstance(m, QLinear):
                m.levels = 2 ** (bits - 1) - 1
    return net


rings = torch.randn(10, 3, 16) * 1.0


def batch(n):
    y = torch.randint(10, (n,))
    return rings[y, torch.randint(3, (n,))] + 0.7 * torch.randn(n, 16), y


def acc(net):
    x, y = held
    with torch.no_grad():
        return (net(x).argmax(1) == y).float().mean().item()


held = batch(1500)
full = load_model()
opt = torch.optim.Adam(full.parameters(), lr=3e-3)
for _ in range(400):
    x, y = batch(96)
    opt.zero_grad()
    F.cross_entropy(full(x), y).backward()
    opt.step()
checkpoint = io.BytesIO()
torch.save(full.state_dict(), checkpoint)

quantization = cfg.bits if cfg.load_low_bit else None
student = load_model(checkpoint, bits=quantization)
teacher = load_model(checkpoint)
teacher.eval()
for p in teacher.parameters():
    p.requires_grad_(False)
print(f"full {acc(full):.3f} student {acc(student):.3f}")

opt = torch.optim.Adam(student.parameters(), lr=1e-3)
for step in range(cfg.steps):
    x, y = batch(cfg.batch)
    logits = student(x)
    with torch.no_grad():
        ref = teacher(x)
    kd = F.kl_div(F.log_softmax(logits / cfg.tau, 1), F.softmax(ref / cfg.tau, 1), reduction="batchmean") * cfg.tau ** 2
    loss = kd + 0.2 * F.cross_entropy(logits, y)
    opt.zero_grad()
    loss.backward()
    opt.step()
    if step % 44 == 0:
        print(step, f"kd {kd.item():.4f} student {acc(student):.3f}")
print(f"student {acc(student):.3f}")
