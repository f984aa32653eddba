"""Three attribute classifiers (shape, texture, size), each a network of its own,
are merged into one small multi-head student.  Unlabelled images; one soft loss
per attribute, averaged.
"""
import torch
import torch.nn.functional as F
from torch import nn

ATTRIBUTES = ("shape", "texture", "size")
LEVELS, SIDE = 4, 16


def pictures(n, gen):
    lab = {a: torch.randint(0, LEVELS, (n,), generator=gen) for a in ATTRIBUTES}
    axis = torch.linspace(-1, 1, SIDE)
    yy, xx = axis[None, :, None], axis[None, None, :]
    power = torch.tensor([0.7, 1.0, 2.0, 8.0])[lab["shape"]][:, None, None]
    radius = torch.tensor([0.35, 0.5, 0.7, 0.9])[lab["size"]][:, None, None]
    dist = ((xx.abs() ** power + yy.abs() ** power) + 1e-6) ** (1 / power)
    mask = torch.sigmoid((radius - dist) * 15)
    freq = torch.tensor([2.0, 5.0, 9.0, 14.0])[lab["texture"]][:, None, None]
    phase = torch.rand(n, 1, 1, generator=gen) * 6.28
    image = mask * (1 + 0.7 * torch.sin(freq * (xx + yy) + phase))
    return (image + 0.1 * torch.randn(n, SIDE, SIDE, generator=gen))[:, None], lab


def trunk(c):
    return nn.Sequential(nn.Conv2d(1, c, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
                         nn.Conv2d(c, 2 * c, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
                         nn.Linear(32 * c, 4 * c), nn.ReLU())


class MultiHead(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.trunk = trunk(c)
        self.heads = nn.ModuleDict({a: nn.Linear(4 * c, LEVELS) for a in ATTRIBUTES})

    def forward(self, x):
        h = self.trunk(x)
        return {a: head(h) for a, head in self.heads.items()}


def train_expert(attribute, gen):
    net = nn.Sequential(trunk(12), nn.Linear(48, LEVELS))
    opt = torch.optim.Adam(net.parameters(), lr=3e-3)
    for _ in range(110):
        x, lab = pictures(40, gen)
        opt.zero_grad()
        F.cross_entropy(net(x), lab[attribute]).backward()
        opt.step()
    return net.eval().requires_grad_(False)


def soft_loss(logits, target_logits, tau=2.0):
    p = F.softmax(target_logits / tau, 1)
    return F.kl_div(F.log_softmax(logits / tau, 1), p, reduction="batchmean") * tau ** 2


def make_criteria(experts):
    criteria = {}
    for name in experts:
        def criterion(logits, x):
            with torch.no_grad():
                target = experts[name](x)
            return soft_loss(logits, target)
        criteria[name] = criterion
    return criteria


@torch.no_grad()
def report(student, x, lab):
    student.eval()
    out = student(x)
    student.train()
    return " ".join(f"{a} {(out[a].argmax(1) == lab[a]).float().mean().item():.3f}" for a in ATTRIBUTES)


def main():
    torch.manual_seed(9)
    gen = torch.Generator().manual_seed(9)
    x_test, lab_test = pictures(500, gen)
    experts = {a: train_expert(a, gen) for a in ATTRIBUTES}
    with torch.no_grad():
        for a, net in experts.items():
            print(f"expert {a}: {(net(x_test).argmax(1) == lab_test[a]).float().mean().item():.3f}")
    criteria = make_criteria(experts)
    student = MultiHead(9)
    opt = torch.optim.AdamW(student.parameters(), lr=6e-3, weight_decay=1e-3)
    for step in range(140):
        x, _ = pictures(32, gen)
        out = student(x)
        losses = {a: criteria[a](out[a], x) for a in ATTRIBUTES}
        total = torch.stack(list(losses.values())).mean()
        opt.zero_grad()
        total.backward()
        opt.step()
        if step % 35 == 34:
            print(f"step {step + 1} " + " ".join(f"{a} {v.item():.3f}" for a, v in losses.items()))
    print("student: " + report(student, x_test, lab_test))


if __name__ == "__main__":
    main()
