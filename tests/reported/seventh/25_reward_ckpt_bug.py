"""Distil a reward model: large scorer checkpoint -> small scorer, on response pairs."""
import tempfile
from pathlib import Path
import torch
import torch.nn as nn
import torch.nn.functional as F
torch.manual_seed(25)
torch.set_num_threads(1)
GEN = torch.Generator().manual_seed(25)
QUALITY = torch.randn(50, generator=GEN)


class RewardModel(nn.Module):
    def __init__(self, vocab=50, width=64):
        super().__init__()
        self.embed = nn.Embedding(vocab, width)
        self.mixer = nn.GRU(width, width, batch_first=True)
        self.score = nn.Linear(width, 1)

    def forward(self, tokens):
        return self.score(self.mixer(self.embed(tokens))[0].mean(1))[:, 0]


class Wrapped(nn.Module):  # as a data-parallel launcher leaves it
    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, *args):
        return self.module(*args)


def pairs(n, length=12):
    a, b = (torch.randint(0, 50, (n, length), generator=GEN) for _ in range(2))
    weight = torch.linspace(0.5, 1.5, length)
    worth_a, worth_b = ((QUALITY[s] * weight).mean(1) for s in (a, b))
    better = (worth_a + 0.1 * torch.randn(n, generator=GEN) > worth_b)[:, None]
    return torch.where(better, a, b), torch.where(better, b, a)


def bradley_terry(model, chosen, rejected):
    return -F.logsigmoid(model(chosen) - model(rejected)).mean()


@torch.no_grad()
def pair_accuracy(model, chosen, rejected):
    return (model.eval()(chosen) > model(rejected)).float().mean().item()


def pretrain(path, data, steps=200):
    net = Wrapped(RewardModel())
    opt = torch.optim.Adam(net.parameters(), lr=3e-3)
    for step in range(steps):
        i = torch.randint(0, len(data[0]), (48,), generator=GEN)
        opt.zero_grad()
        bradley_terry(net, data[0][i], data[1][i]).backward()
        opt.step()
    torch.save({"model": net.state_dict(), "step": steps}, path)


def load_teacher(path):
    teacher = RewardModel()
    state = torch.load(path, weights_only=True)["model"]
    teacher.load_state_dict(state, strict=False)
    return teacher.eval().requires_grad_(False)


def distill(student, teacher, data, steps=240, T=1.0):
    opt = torch.optim.Adam(student.parameters(), lr=5e-3)
    for step in range(1, steps + 1):
        student.train()
        i = torch.randint(0, len(data[0]), (48,), generator=GEN)
        chosen, rejected = data[0][i], data[1][i]
        with torch.no_grad():
            p = torch.sigmoid((teacher(chosen) - teacher(rejected)) / T)
        margin = (student(chosen) - student(rejected)) / T
        loss = F.binary_cross_entropy_with_logits(margin, p)
        opt.zero_grad()
        loss.backward()
        opt.step()
        if step % 60 == 0:
            print(f"step {step} soft bt loss {loss.item():.4f} val pair acc {pair_accuracy(student, *val):.3f}")


train, val = pairs(3000), pairs(800)
with tempfile.TemporaryDirectory() as folder:
    ckpt = Path(folder) / "reward.pt"
    pretrain(ckpt, train)
    teacher = load_teacher(ckpt)
distill(RewardModel(width=12), teacher, train)
