"""Online continual learning with a knowledge manager that keeps the last model."""
import copy
import torch
from torch import nn
import torch.nn.functional as F


class KnowledgeManager:
    def __init__(self, temperature=2.0):
        self.teacher, self.temperature, self.n_old = None, temperature, 0

    def snapshot(self, model, n_seen):
        self.teacher = copy.deepcopy(model).eval()
        for p in self.teacher.parameters():
            p.requires_grad = False
        self.n_old = n_seen

    def loss(self, logits, x):
        if self.teacher is None:
            return logits.new_zeros(())
        with torch.no_grad():
            old = self.teacher(x)
        part = slice(self.n_old, None)
        T = self.temperature
        target = (old[:, part] / T).softmax(1)
        return F.kl_div((logits[:, part] / T).log_softmax(1), target, reduction="batchmean") * T * T


class Stream:
    def __init__(self, tasks=3, per_task=3, dim=18):
        self.tasks, self.per_task = tasks, per_task
        self.mu = 0.8 * torch.randn(tasks * per_task, dim)

    def sample(self, task, n):
        y = task * self.per_task + torch.randint(self.per_task, (n,))
        return self.mu[y] + torch.randn(n, self.mu.size(1)), y


class Learner:
    def __init__(self, stream, lr=6e-3):
        self.stream = stream
        n_classes = stream.tasks * stream.per_task
        self.model = nn.Sequential(nn.Linear(stream.mu.size(1), 96), nn.ReLU(), nn.Linear(96, n_classes))
        self.kd = KnowledgeManager()
        self.lr = lr

    def masked_ce(self, logits, y, task):
        a, b = task * self.stream.per_task, (task + 1) * self.stream.per_task
        return F.cross_entropy(logits[:, a:b], y - a)

    def learn(self, task, steps=220, bs=48):
        opt = torch.optim.Adam(self.model.parameters(), lr=self.lr)
        for i in range(steps):
            x, y = self.stream.sample(task, bs)
            logits = self.model(x)
            ce, kd = self.masked_ce(logits, y, task), self.kd.loss(logits, x)
            opt.zero_grad()
            (ce + task * kd).backward()
            opt.step()
            if i % 110 == 0:
                print(f"task {task} it {i} ce {ce.item():.3f} kd {kd.item():.4f}")
        self.kd.snapshot(self.model, (task + 1) * self.stream.per_task)

    @torch.no_grad()
    def task_accuracy(self, task):
        x, y = self.stream.sample(task, 800)
        a, b = task * self.stream.per_task, (task + 1) * self.stream.per_task
        return (self.model(x)[:, a:b].argmax(1) == y - a).float().mean().item()


if __name__ == "__main__":
    torch.manual_seed(700)
    stream = Stream()
    learner = Learner(stream)
    for task in range(stream.tasks):
        learner.learn(task)
        print("accuracy per task:", [round(learner.task_accuracy(t), 3) for t in range(task + 1)])
