"""A committee of annotator-specific teachers: each teacher was trained on the
labels of one annotator (who differ in care), is scored on a clean validation
set, and has a say in the soft target that grows with its score.
"""
import torch
from torch import nn
from torch.distributions import Categorical, kl_divergence
from torch.nn import functional as F

CLASSES, DIM = 6, 16
ANNOTATOR_NOISE = (0.52, 0.1, 0.42)


def blobs(n, gen):
    centres = torch.randn(CLASSES, DIM, generator=torch.Generator().manual_seed(0)) * 0.9
    y = torch.randint(0, CLASSES, (n,), generator=gen)
    return centres[y] + torch.randn(n, DIM, generator=gen), y


def annotate(y, noise, gen):
    """Careless annotators mix up neighbouring classes."""
    wrong = torch.rand(len(y), generator=gen) < noise
    return torch.where(wrong, (y + 1) % CLASSES, y)


def make_net(hidden):
    return nn.Sequential(nn.Linear(DIM, hidden), nn.Tanh(), nn.Linear(hidden, CLASSES))


def fit(net, x, y, epochs=6):
    opt = torch.optim.RMSprop(net.parameters(), lr=2e-3)
    for _ in range(epochs):
        for part in torch.randperm(len(x)).split(64):
            opt.zero_grad()
            F.cross_entropy(net(x[part]), y[part]).backward()
            opt.step()
    return net.eval().requires_grad_(False)


@torch.no_grad()
def accuracy(net, x, y):
    return (net(x).argmax(1) == y).float().mean().item()


class Committee:
    def __init__(self, members, scores, sharpness=6.0):
        ranked = sorted(zip(scores, members), key=lambda item: item[0], reverse=True)
        self.members = [member for _, member in ranked]
        self.scores = torch.tensor(scores)
        self.weights = torch.softmax(sharpness * self.scores, 0)

    @torch.no_grad()
    def soft_target(self, x, tau):
        stacked = torch.stack([F.softmax(m(x) / tau, 1) for m in self.members])
        return torch.einsum("k,kbc->bc", self.weights, stacked)


def main():
    torch.manual_seed(12)
    gen = torch.Generator().manual_seed(12)
    val, test = blobs(500, gen), blobs(2000, gen)
    members, scores = [], []
    for noise in ANNOTATOR_NOISE:
        x, y = blobs(1500, gen)
        members.append(fit(make_net(96), x, annotate(y, noise, gen)))
        scores.append(accuracy(members[-1], *val))
    print("validation accuracy of the teachers: " + " ".join(f"{s:.3f}" for s in scores))
    committee = Committee(members, scores)
    print("weights in use: " + " ".join(f"{w:.3f}" for w in committee.weights.tolist()))

    student = make_net(20)
    opt = torch.optim.Adagrad(student.parameters(), lr=0.05)
    tau = 1.5
    for step in range(120):
        x, _ = blobs(64, gen)
        target = Categorical(probs=committee.soft_target(x, tau))
        guess = Categorical(logits=student(x) / tau)
        loss = tau ** 2 * kl_divergence(target, guess).mean()
        opt.zero_grad()
        loss.backward()
        opt.step()
        if step % 30 == 29:
            print(f"step {step + 1} loss {loss.item():.4f} val {accuracy(student, *val):.3f}")
    print(f"student test accuracy {accuracy(student, *test):.3f}")


if __name__ == "__main__":
    main()
