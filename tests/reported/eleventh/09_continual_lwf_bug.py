"""Learning without forgetting: three tasks in turn, one output slice per task.

Before a new task starts, the weights are kept; the kept network answers on the
new task's inputs and its answers on the old slices are the distillation target.
(The old model is the teacher, so both have the same architecture.)
"""
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call
from torch.utils.data import DataLoader, TensorDataset

TASKS, PER_TASK, DIM, TAU, LAMBDA = 3, 4, 24, 2.0, 4.0


def task_data(task, n, seed):
    world = torch.Generator().manual_seed(100 + task)
    centres = torch.randn(PER_TASK, DIM, generator=world) * 1.1
    mix = torch.randn(DIM, DIM, generator=torch.Generator().manual_seed(55)) / DIM ** 0.5
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(0, PER_TASK, (n,), generator=g)
    x = centres[y] + torch.randn(n, DIM, generator=g)
    return torch.tanh(x @ mix), y


class MultiHead(nn.Module):
    def __init__(self, hidden=64):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(DIM, hidden), nn.LayerNorm(hidden), nn.ReLU(),
                                   nn.Linear(hidden, hidden), nn.LayerNorm(hidden), nn.ReLU())
        self.out = nn.Linear(hidden, TASKS * PER_TASK)

    def forward(self, x):
        return self.out(self.trunk(x)).unflatten(1, (TASKS, PER_TASK))


class LwFLearner:
    def __init__(self, lr):
        self.model = MultiHead()
        self.lr = lr
        self.seen = 0
        self.kept = None

    def remember(self):
        self.kept = {k: v.detach() for k, v in self.model.state_dict().items()}
        self.seen += 1

    @torch.no_grad()
    def old_answers(self, x):
        return functional_call(self.model, self.kept, (x,))[:, : self.seen]

    def loss(self, x, y, task):
        logits = self.model(x)
        ce = F.cross_entropy(logits[:, task], y)
        if self.kept is None:
            return ce, torch.zeros(())
        target = F.softmax(self.old_answers(x) / TAU, -1)
        log_q = F.log_softmax(logits[:, : self.seen] / TAU, -1)
        kd = F.kl_div(log_q, target, reduction="sum") / (len(x) * self.seen) * TAU ** 2
        return ce, kd

    def learn(self, task, x, y, epochs):
        opt = torch.optim.SGD(self.model.parameters(), lr=self.lr, momentum=0.9)
        self.model.train()
        for epoch in range(epochs):
            kd_sum = 0.0
            loader = DataLoader(TensorDataset(x, y), batch_size=50, shuffle=True)
            for xb, yb in loader:
                ce, kd = self.loss(xb, yb, task)
                opt.zero_grad()
                (ce + LAMBDA * kd).backward()
                nn.utils.clip_grad_norm_(self.model.parameters(), 5.0)
                opt.step()
                kd_sum += kd.item()
            print(f"  task {task} epoch {epoch} ce {ce.item():.3f} kd {kd_sum / len(loader):.5f}")
        self.remember()

    @torch.no_grad()
    def accuracy(self, task, x, y):
        self.model.eval()
        return (self.model(x)[:, task].argmax(-1) == y).float().mean().item()


def main():
    torch.manual_seed(6)
    learner = LwFLearner(lr=0.05)
    train = [task_data(t, 1200, 10 + t) for t in range(TASKS)]
    test = [task_data(t, 800, 20 + t) for t in range(TASKS)]
    first = []
    for t in range(TASKS):
        learner.learn(t, *train[t], epochs=3)
        first.append(learner.accuracy(t, *test[t]))
        row = " ".join(f"{learner.accuracy(k, *test[k]):.3f}" for k in range(t + 1))
        print(f"after task {t}: accuracy on tasks so far {row}")
    forget = [first[t] - learner.accuracy(t, *test[t]) for t in range(TASKS - 1)]
    print(f"mean forgetting {sum(forget) / len(forget):.3f}")


if __name__ == "__main__":
    main()
