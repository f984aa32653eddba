import torch
import torch.nn as nn
import torch.nn.functional as F

LOSSES = {}


def register(name):
    def deco(cls):
        LOSSES[name] = cls
        return cls
    return deco


@register("nkd")
class NormalisedKD(nn.Module):
    """Target term weighted by the teacher's confidence + distribution of the other classes."""

    def __init__(self, tau=1.5, gamma=1.5):
        super().__init__()
        self.tau, self.gamma = tau, gamma

    def forward(self, logit_s, logit_t, target):
        label = target.unsqueeze(1)
        n = logit_s.size(0)
        p_t = logit_t.softmax(1).gather(1, label).detach()
        target_term = -(p_t * logit_s.log_softmax(1).gather(1, label)).mean()
        mask = torch.ones_like(logit_s).scatter_(1, label, 1).bool()
        rest_s = logit_s[mask].reshape(n, -1)
        rest_t = logit_t[mask].reshape(n, -1)
        soft = (rest_t / self.tau).softmax(1)
        other_term = -(soft * (rest_s / self.tau).log_softmax(1)).sum(1).mean()
        return target_term + self.gamma * self.tau ** 2 * other_term


class Blobs:
    """Classes come in families, so wrong classes are not equally wrong."""

    def __init__(self, families=3, members=3, dim=15):
        self.k = families * members
        centre = 1.6 * torch.randn(families, 1, dim)
        self.mu = (centre + 0.8 * torch.randn(families, members, dim)).reshape(self.k, dim)

    def __call__(self, n):
        y = torch.randint(self.k, (n,))
        return self.mu[y] + torch.randn(n, self.mu.size(1)), y


def build(width, depth, dim, k):
    layers, d = [], dim
    for _ in range(depth):
        layers += [nn.Linear(d, width), nn.BatchNorm1d(width), nn.ReLU()]
        d = width
    return nn.Sequential(*layers, nn.Linear(d, k))


def test(net, data):
    net.eval()
    with torch.no_grad():
        return (net(data[0]).argmax(1) == data[1]).float().mean().item()


def main():
    torch.manual_seed(4242)
    data = Blobs()
    held = data(1500)
    teacher = build(128, 2, 15, data.k)
    opt = torch.optim.Adam(teacher.parameters(), lr=2e-3)
    for _ in range(250):
        x, y = data(64)
        loss = F.cross_entropy(teacher(x), y)
        opt.zero_grad()
        loss.backward()
        opt.step()
    print("teacher", test(teacher, held))
    teacher.requires_grad_(False)
    student = build(16, 1, 15, data.k)
    kd = LOSSES["nkd"]()
    opt = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9)
    for epoch in range(5):
        student.train()
        for _ in range(60):
            x, y = data(48)
            s = student(x)
            loss = F.cross_entropy(s, y) + kd(s, teacher(x), y)
            opt.zero_grad()
            loss.backward()
            opt.step()
        print(f"epoch {epoch} loss {loss.item():.3f} student {test(student, held):.3f}")


main()
