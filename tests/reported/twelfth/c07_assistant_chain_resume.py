"""Teacher -> assistant -> student chain with standardised logits.

Logits are z-scored per sample on both sides before the softmax. The last stage of the
chain is interrupted half-way and continued from a checkpoint that it wrote.
"""
import os
import tempfile

import torch
from torch import nn
from torch.nn import functional as F

TAU, CLASSES, DIM = 2.0, 10, 16


def zscore(logits):
    return (logits - logits.mean(-1, keepdim=True)) / (logits.std(-1, keepdim=True) + 1e-7)


def standardised_kd(s_logits, t_logits):
    s, t = zscore(s_logits) / TAU, zscore(t_logits) / TAU
    return F.kl_div(s.log_softmax(-1), t.softmax(-1), reduction="batchmean") * TAU ** 2


def mlp(width):
    return nn.Sequential(nn.Linear(DIM, width), nn.GELU(), nn.Linear(width, width), nn.GELU(),
                         nn.Linear(width, CLASSES))


class Stage:
    """One link of the chain; everything it needs to go on is in its checkpoint."""

    def __init__(self, net, guide, data, total=120, lr=1.2e-2, seed=0):
        self.net, self.guide, self.data, self.total, self.step = net, guide, data, total, 0
        self.opt = torch.optim.AdamW(net.parameters(), lr=lr)
        self.sched = torch.optim.lr_scheduler.CosineAnnealingLR(self.opt, total)
        self.rng = torch.Generator().manual_seed(seed)

    def save(self, path):
        torch.save({"net": self.net.state_dict(), "opt": self.opt.state_dict(), "step": self.step,
                    "sched": self.sched.state_dict(), "rng": self.rng.get_state()}, path)

    def load(self, path):
        state = torch.load(path)
        self.net.load_state_dict(state["net"])
        self.opt.load_state_dict(state["opt"])
        self.sched.load_state_dict(state["sched"])
        self.rng.set_state(state["rng"])
        self.step = state["step"]

    def kd_weight(self):
        return 6.0 * min(1.0, self.step / 40)

    def run(self, until):
        x, y = self.data
        while self.step < until:
            i = torch.randint(0, len(y), (64,), generator=self.rng)
            logits = self.net(x[i])
            loss = F.cross_entropy(logits, y[i])
            if self.guide is not None:
                with torch.no_grad():
                    t_logits = self.guide(x[i])
                loss = loss + self.kd_weight() * standardised_kd(logits, t_logits)
            self.opt.zero_grad()
            loss.backward()
            self.opt.step()
            self.sched.step()
            self.step += 1
        return self.net.eval().requires_grad_(False) if self.step == self.total else self.net


def dataset(n, seed):
    g = torch.Generator().manual_seed(seed)
    centre = torch.randn(CLASSES * 2, DIM, generator=torch.Generator().manual_seed(1))
    y = torch.randint(0, CLASSES * 2, (n,), generator=g)
    return centre[y] + 0.9 * torch.randn(n, DIM, generator=g), y % CLASSES


@torch.no_grad()
def accuracy(net, data):
    return (net(data[0]).argmax(-1) == data[1]).float().mean().item()


def main():
    torch.manual_seed(0)
    train, test = dataset(1200, 5), dataset(800, 6)
    teacher = Stage(mlp(96), None, train).run(120)
    print(f"teacher {accuracy(teacher, test):.3f}")
    assistant = Stage(mlp(32), teacher, train, seed=1).run(120)
    print(f"assistant {accuracy(assistant, test):.3f}")

    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "student.pt")
        first = Stage(mlp(8), assistant, train, seed=2)
        first.run(60)
        first.save(path)
        print(f"student {accuracy(first.net, test):.3f} at step {first.step}, checkpoint written")
        second = Stage(mlp(8), assistant, train, seed=3)
        second.load(path)
    student = second.run(120)
    print(f"student {accuracy(student, test):.3f} at step {second.step}, lr {second.sched.get_last_lr()[0]:.6f}")


if __name__ == "__main__":
    main()
