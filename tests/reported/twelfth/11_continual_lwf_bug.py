"""Class-incremental learning without forgetting.

A callback keeps the network of the previous task and distils it on the old classes
while the new task's images arrive. Old images are not kept.
"""
import copy

import torch
import torch.nn as nn
import torch.nn.functional as F


class Callback:
    def on_task_start(self, trainer): ...
    def on_epoch_start(self, trainer): ...
    def extra_loss(self, trainer, x, logits): return logits.new_zeros(())
    def on_epoch_end(self, trainer): ...


class LessForgetting(Callback):
    def __init__(self, weight=2.0, tau=2.0):
        self.weight, self.tau, self.old = weight, tau, None

    def on_epoch_start(self, trainer):
        if trainer.task > 0:
            self.old = copy.deepcopy(trainer.net).eval().requires_grad_(False)

    def extra_loss(self, trainer, x, logits):
        if self.old is None:
            return logits.new_zeros(())
        seen = trainer.task * trainer.classes_per_task
        with torch.no_grad():
            target = (self.old(x)[:, :seen] / self.tau).softmax(-1)
        logp = (logits[:, :seen] / self.tau).log_softmax(-1)
        return self.weight * self.tau ** 2 * F.kl_div(logp, target, reduction="batchmean")


class Report(Callback):
    def on_epoch_end(self, trainer):
        if trainer.epoch % 4 == 3:
            accs = [trainer.accuracy(t) for t in range(trainer.task + 1)]
            print(f"task {trainer.task} epoch {trainer.epoch} loss {trainer.last_loss:.3f} "
                  f"accuracy by task {' '.join(f'{a:.3f}' for a in accs)}")


class Tasks:
    def __init__(self, n_tasks, classes_per_task, dim=10):
        self.g = torch.Generator().manual_seed(13)
        self.centre = 0.7 * torch.randn(n_tasks * classes_per_task, dim, generator=self.g)
        self.per = classes_per_task

    def draw(self, task, n):
        y = torch.randint(0, self.per, (n,), generator=self.g) + task * self.per
        return self.centre[y] + 0.8 * torch.randn(n, self.centre.size(1), generator=self.g), y


class Trainer:
    classes_per_task = 3

    def __init__(self, n_tasks=3, callbacks=()):
        self.n_tasks, self.callbacks = n_tasks, callbacks
        self.tasks = Tasks(n_tasks, self.classes_per_task)
        self.net = nn.Sequential(nn.Linear(10, 64), nn.ReLU(), nn.Dropout(0.1),
                                 nn.Linear(64, n_tasks * self.classes_per_task))
        self.test = [self.tasks.draw(t, 200) for t in range(n_tasks)]

    def emit(self, event):
        for cb in self.callbacks:
            getattr(cb, event)(self)

    @torch.no_grad()
    def accuracy(self, task):
        """Among the classes of the task itself (task-aware)."""
        self.net.eval()
        x, y = self.test[task]
        lo = task * self.classes_per_task
        guess = self.net(x)[:, lo:lo + self.classes_per_task].argmax(-1) + lo
        self.net.train()
        return (guess == y).float().mean().item()

    def train_epoch(self, data, opt):
        x_all, y_all = data
        for pick in torch.randperm(len(y_all)).split(40):
            x, y = x_all[pick], y_all[pick]
            logits = self.net(x)
            lo = self.task * self.classes_per_task
            loss = F.cross_entropy(logits[:, lo:lo + self.classes_per_task], y - lo)
            for cb in self.callbacks:
                loss = loss + cb.extra_loss(self, x, logits)
            opt.zero_grad()
            loss.backward()
            opt.step()
        self.last_loss = loss.item()

    def fit(self, epochs=12):
        for self.task in range(self.n_tasks):
            data = self.tasks.draw(self.task, 240)
            opt = torch.optim.SGD(self.net.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
            self.emit("on_task_start")
            for self.epoch in range(epochs):
                self.emit("on_epoch_start")
                self.train_epoch(data, opt)
                self.emit("on_epoch_end")
        return [self.accuracy(t) for t in range(self.n_tasks)]


def main():
    torch.manual_seed(5)
    trainer = Trainer(callbacks=[LessForgetting(), Report()])
    accs = trainer.fit()
    print(f"mean accuracy: all tasks {sum(accs) / len(accs):.3f}, earlier tasks {sum(accs[:-1]) / (len(accs) - 1):.3f}")


if __name__ == "__main__":
    main()
