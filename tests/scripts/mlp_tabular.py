"""Born-again network on tabular data: teacher and student share one architecture, both start from files."""

import json
import tempfile
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F

HPARAMS = json.loads(
    '{"features": 20, "classes": 4, "hidden": 64, "dropout": 0.15, "batch": 100, "epochs": 4, "lr": 0.004, "T": 3}'
)
torch.manual_seed(1)
folder = Path(tempfile.mkdtemp())


def tabular(n):
    """Standard-scaled features with a few informative interactions; the label is the best-matching direction."""
    raw = torch.randn(n, HPARAMS["features"]) * scale + shift
    z = (raw - shift) / scale
    score = z @ directions + 0.8 * torch.tanh(z[:, :4] * z[:, 4:8])
    return raw, (score + 0.3 * torch.randn_like(score)).argmax(1)


def mlp():
    h = HPARAMS["hidden"]
    return nn.Sequential(
        nn.Linear(HPARAMS["features"], h),
        nn.BatchNorm1d(h),
        nn.ReLU(),
        nn.Dropout(HPARAMS["dropout"]),
        nn.Linear(h, h),
        nn.BatchNorm1d(h),
        nn.ReLU(),
        nn.Linear(h, HPARAMS["classes"]),
    )


def load(name):
    net = mlp()
    net.load_state_dict(torch.load(folder / name))
    return net


def score(net, x, y):
    net.eval()
    with torch.no_grad():
        return (net(x).argmax(1) == y).float().mean().item()


def fit(net, x, y, loss_fn, epochs):
    opt = torch.optim.Adam(net.parameters(), lr=HPARAMS["lr"])
    for epoch in range(epochs):
        net.train()
        total = 0.0
        for rows in torch.randperm(len(x)).split(HPARAMS["batch"]):
            xb, yb = x[rows], y[rows]
            loss = loss_fn(net, xb, yb)
            opt.zero_grad()
            loss.backward()
            opt.step()
            total += loss.item() * len(rows)
        print(f"  epoch {epoch} loss {total / len(x):.4f}")
    return net


def label_loss(net, xb, yb):
    return F.cross_entropy(net(xb), yb)


def born_again_loss(teacher, T):
    teacher.eval()

    def loss_fn(net, xb, yb):
        with torch.no_grad():
            p = (teacher(xb) / T).softmax(1)
        z = net(xb)
        kd = F.kl_div((z / T).log_softmax(1), p, reduction="sum") / len(xb)
        return 0.75 * T * T * kd + 0.25 * F.cross_entropy(z, yb)

    return loss_fn


scale = torch.rand(HPARAMS["features"]) * 5 + 0.5
shift = torch.randn(HPARAMS["features"]) * 3
directions = torch.randn(HPARAMS["features"], HPARAMS["classes"])
x_all, y_all = tabular(2000)
mu, sigma = x_all[:1500].mean(0), x_all[:1500].std(0)
x_all = (x_all - mu) / sigma
x_train, y_train = x_all[:1500], y_all[:1500]
x_test, y_test = x_all[1500:], y_all[1500:]

torch.save(mlp().state_dict(), folder / "student_start.pt")
print("generation 0")
torch.save(fit(mlp(), x_train, y_train, label_loss, HPARAMS["epochs"]).state_dict(), folder / "generation0.pt")

teacher = load("generation0.pt")
print(f"teacher accuracy {score(teacher, x_test, y_test):.3f}")
student = load("student_start.pt")
print("generation 1")
fit(student, x_train, y_train, born_again_loss(teacher, HPARAMS["T"]), HPARAMS["epochs"])
print(f"student accuracy {score(student, x_test, y_test):.3f}")
