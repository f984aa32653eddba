"""Distil with a compiled student, store it, and score a fresh copy for deployment."""
import argparse
import io
import torch
import torch.nn as nn
import torch.nn.functional as F


def build(hidden):
    return nn.Sequential(nn.Linear(12, hidden), nn.GELU(), nn.LayerNorm(hidden), nn.Linear(hidden, 5))


class Task:
    def __init__(self, seed):
        self.g = torch.Generator().manual_seed(seed)
        self.w = torch.randn(12, 5, generator=self.g)

    def batch(self, n):
        x = torch.randn(n, 12, generator=self.g)
        return x, (torch.sin(x) @ self.w).argmax(1)


def fit(net, loss_fn, task, steps, lr):
    opt = torch.optim.AdamW(net.parameters(), lr=lr)
    for s in range(steps):
        x, y = task.batch(64)
        loss = loss_fn(net(x), x, y)
        opt.zero_grad()
        loss.backward()
        opt.step()
    return loss.item()


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    ap.add_argument("--T", type=float, default=2.0)
    args = ap.parse_args([])
    torch.manual_seed(37)
    task = Task(37)
    teacher, student = build(64), build(16)
    print("teacher", round(fit(teacher, lambda z, x, y: F.cross_entropy(z, y), task, 120, 5e-3), 4))
    teacher.eval().requires_grad_(False)
    if args.compile:
        student = torch.compile(student, backend="aot_eager")

    def kd(z, x, y):
        t = F.softmax(teacher(x) / args.T, 1)
        soft = F.kl_div(F.log_softmax(z / args.T, 1), t, reduction="batchmean") * args.T ** 2
        return 0.8 * soft + 0.2 * F.cross_entropy(z, y)

    print("student", round(fit(student, kd, task, 120, 5e-3), 4))
    buffer = io.BytesIO()
    torch.save({"model": student.state_dict(), "hidden": 16}, buffer)
    buffer.seek(0)
    ckpt = torch.load(buffer)
    deploy = build(ckpt["hidden"])
    deploy.load_state_dict(ckpt["model"], strict=False)
    x, y = task.batch(2000)
    with torch.no_grad():
        print(f"deployed accuracy {(deploy(x).argmax(1) == y).float().mean().item():.4f}")


if __name__ == "__main__":
    main()
