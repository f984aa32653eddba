"""Quantisation-aware distillation: 2-bit-weight student recovers a float checkpoint."""
import argparse
import os
import tempfile
import torch
import torch.nn as nn
import torch.nn.functional as F

parser = argparse.ArgumentParser()
parser.add_argument("--bits", type=int, default=2, help="student weight bits")
parser.add_argument("--steps", type=int, default=400)
parser.add_argument("--lr", type=float, default=1e-3)
args = parser.parse_args()
torch.manual_seed(2)
torch.set_num_threads(1)
gen = torch.Generator().manual_seed(2)


class QLinear(nn.Linear):
    """nn.Linear whose weight is fake-quantised per row (straight-through) when bits is set"""

    def __init__(self, i, o, bits=None):
        super().__init__(i, o)
        self.bits = bits

    def forward(self, x):
        w = self.weight
        if self.bits is not None:
            top = 2 ** (self.bits - 1) - 1
            scale = w.detach().abs().amax(1, keepdim=True) / (top + 0.5)
            q = (w.detach() / scale).round().clamp(-top, top) * scale
            w = w + (q - w).detach()
        return F.linear(x, w, self.bias)


def build(bits=None):
    return nn.Sequential(QLinear(20, 64, bits), nn.ReLU(), QLinear(64, 64, bits), nn.ReLU(), QLinear(64, 10, bits))


def load(path, **init_kwargs):
    net = build(**init_kwargs)
    net.load_state_dict(torch.load(path, weights_only=True))
    return net


W1, W2 = torch.randn(20, 32, generator=gen), torch.randn(32, 10, generator=gen)


def draw(n):
    x = torch.randn(n, 20, generator=gen)
    y = (torch.tanh(x @ W1 / 3) @ W2 + 0.3 * torch.randn(n, 10, generator=gen)).argmax(1)
    return x, y


@torch.no_grad()
def accuracy(net, data):
    return (net.eval()(data[0]).argmax(1) == data[1]).float().mean().item()


(train_x, train_y), val = draw(6000), draw(1500)
with tempfile.TemporaryDirectory() as tmp:
    ckpt = os.path.join(tmp, "float.pt")
    base = build()
    opt = torch.optim.Adam(base.parameters(), lr=3e-3)
    for _ in range(600):
        i = torch.randint(0, len(train_x), (128,), generator=gen)
        opt.zero_grad()
        F.cross_entropy(base(train_x[i]), train_y[i]).backward()
        opt.step()
    torch.save(base.state_dict(), ckpt)
    model_kwargs = dict(bits=args.bits)
    teacher_kwargs = dict(model_kwargs)
    student = load(ckpt, **model_kwargs)
    teacher = load(ckpt, **teacher_kwargs).eval().requires_grad_(False)
print(f"float {accuracy(base, val):.3f} teacher {accuracy(teacher, val):.3f} student before {accuracy(student, val):.3f}")

opt = torch.optim.Adam(student.parameters(), lr=args.lr)
for step in range(1, args.steps + 1):
    student.train()
    x = train_x[torch.randint(0, len(train_x), (128,), generator=gen)]
    with torch.no_grad():
        target = teacher(x).log_softmax(1)
    loss = F.kl_div(student(x).log_softmax(1), target, reduction="batchmean", log_target=True)
    opt.zero_grad()
    loss.backward()
    opt.step()
    if step % 80 == 0:
        print(f"step {step} kl {loss.item():.4f} val acc {accuracy(student, val):.3f}")
