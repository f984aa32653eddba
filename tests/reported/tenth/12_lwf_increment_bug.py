"""Class-incremental learning without exemplars: old classes are kept by distillation (LwF)."""
import copy

import torch
import torch.nn as nn
import torch.nn.functional as F

torch.manual_seed(41)
PER_TASK, DIM, T, LAMBDA = 4, 20, 2.0, 3.0


class Task:
    def __init__(self, centres, first, n, seed):
        g = torch.Generator().manual_seed(seed)
        local = torch.randint(0, PER_TASK, (n,), generator=g)
        self.y = local + first
        self.x = centres[self.y] + 0.9 * torch.randn(n, DIM, generator=g)

    def loader(self, bs):
        for ids in torch.randperm(len(self.y)).split(bs):
            yield self.x[ids], self.y[ids]


class GrowingNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(DIM, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU())
        self.head = nn.Linear(32, PER_TASK)

    def grow(self, k):
        old = self.head
        self.head = nn.Linear(old.in_features, old.out_features + k)
        with torch.no_grad():
            self.head.weight[:old.out_features] = old.weight
            self.head.bias[:old.out_features] = old.bias

    def forward(self, x):
        return self.head(self.trunk(x))


class LwF:
    def __init__(self, net):
        self.net, self.previous, self.n_old = net, None, 0

    def begin_task(self):
        if self.n_old:
            self.previous = copy.deepcopy(self.net).eval()
            self.previous.requires_grad_(False)
            self.net.grow(PER_TASK)
        self.opt = torch.optim.SGD(self.net.parameters(), lr=0.02, momentum=0.9)

    def end_task(self):
        self.n_old += PER_TASK

    def retention(self, x, logits):
        with torch.no_grad():
            before = self.previous(x)
        kept = logits[:, -self.n_old:]
        return F.kl_div((kept / T).log_softmax(1), (before / T).softmax(1), reduction="batchmean") * T * T

    def learn(self, task, epochs):
        self.begin_task()
        for epoch in range(epochs):
            self.net.train()
            for x, y in task.loader(32):
                logits = self.net(x)
                new = F.cross_entropy(logits[:, self.n_old:], y - self.n_old)
                keep = self.retention(x, logits) if self.previous is not None else torch.zeros(())
                loss = new + LAMBDA * keep
                self.opt.zero_grad()
                loss.backward()
                self.opt.step()
            print(f"  epoch {epoch} new {new.item():.3f} keep {keep.item():.4f}")
        self.end_task()

    @torch.no_grad()
    def accuracy(self, task, first):
        self.net.eval()
        local = self.net(task.x)[:, first:first + PER_TASK]
        return (local.argmax(1) + first == task.y).float().mean().item()


def main():
    centres = 0.8 * torch.randn(3 * PER_TASK, DIM)
    learner = LwF(GrowingNet())
    tests = []
    for k in range(3):
        print(f"task {k}")
        first = k * PER_TASK
        learner.learn(Task(centres, first, 640, seed=k), epochs=4)
        tests.append((Task(centres, first, 300, seed=100 + k), first))
        print("  test", [round(learner.accuracy(t, f), 3) for t, f in tests])


if __name__ == "__main__":
    main()
