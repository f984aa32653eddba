"""Two-task continual learning on tabular data: Learning-without-Forgetting trainer."""
import copy
import torch
from torch import nn
import torch.nn.functional as F

torch.manual_seed(40)
torch.set_num_threads(1)


class TaskStream:
    """each task labels its own region of the feature space with its own rule"""

    def __init__(self, n_tasks=2, dim=16, classes=5, seed=40):
        self.g = torch.Generator().manual_seed(seed)
        self.rules = [torch.randn(dim, classes, generator=self.g) for _ in range(n_tasks)]
        self.means = [1.5 * torch.randn(dim, generator=self.g) for _ in range(n_tasks)]

    def draw(self, task, n):
        x = torch.randn(n, len(self.means[task]), generator=self.g)
        y = (torch.tanh(x) @ self.rules[task]).argmax(1)
        return x + self.means[task], y


class MultiHead(nn.Module):
    def __init__(self, dim=16, width=96, classes=5, tasks=2):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(dim, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.heads = nn.ModuleList([nn.Linear(width, classes) for _ in range(tasks)])

    def forward(self, x):
        h = self.body(x)
        return [head(h) for head in self.heads]


class LwFTrainer:
    def __init__(self, net, alpha=2.0, T=2.0, lr=0.05):
        self.net, self.alpha, self.T, self.lr = net, alpha, T, lr
        self.previous, self.seen = None, 0

    def distill(self, outs, x):
        with torch.no_grad():
            old = self.previous(x)
        terms = [F.kl_div(F.log_softmax(outs[k] / self.T, 1), F.softmax(old[k] / self.T, 1),
                          reduction="batchmean") * self.T ** 2 for k in range(self.seen)]
        return sum(terms) / len(terms)

    def fit_task(self, task, x, y, epochs=10, batch=64):
        opt = torch.optim.SGD(self.net.parameters(), lr=self.lr, momentum=0.9)
        for epoch in range(epochs):
            self.net.train()
            ce_sum = kd_sum = 0.0
            chunks = torch.randperm(len(x)).split(batch)
            for i in chunks:
                outs = self.net(x[i])
                ce = F.cross_entropy(outs[task], y[i])
                kd = self.distill(outs, x[i]) if self.previous is not None else torch.zeros(())
                opt.zero_grad()
                (ce + self.alpha * kd).backward()
                opt.step()
                ce_sum, kd_sum = ce_sum + ce.item(), kd_sum + kd.item()
            print(f"task {task} epoch {epoch} ce {ce_sum / len(chunks):.4f} kd {kd_sum / len(chunks):.4f}")
        self.after_task()

    def after_task(self):
        self.previous = self.net
        self.previous.eval()
        self.seen += 1

    @torch.no_grad()
    def accuracy(self, task, x, y):
        self.net.eval()
        return (self.net(x)[task].argmax(1) == y).float().mean().item()


stream = TaskStream()
trainer = LwFTrainer(MultiHead())
tests = [stream.draw(t, 600) for t in range(2)]
for t in range(2):
    trainer.fit_task(t, *stream.draw(t, 5000))
    scores = [f"task{k} {trainer.accuracy(k, *tests[k]):.3f}" for k in range(t + 1)]
    print("test:", ", ".join(scores))
