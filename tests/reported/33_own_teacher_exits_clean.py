import torch
from torch import nn
import torch.nn.functional as F

torch.manual_seed(33)


class MultiExit(nn.Module):
    """Three stages, an exit after each; the deepest exit teaches the shallow ones."""

    def __init__(self, c=10, classes=6):
        super().__init__()
        chans = [1, c, 2 * c, 3 * c]
        self.stages = nn.ModuleList(nn.Sequential(nn.Conv2d(a, b, 3, 2, 1), nn.BatchNorm2d(b), nn.ReLU())
                                    for a, b in zip(chans, chans[1:]))
        self.heads = nn.ModuleList(nn.Linear(b, classes) for b in chans[1:])

    def forward(self, x):
        logits, feats = [], []
        for stage, head in zip(self.stages, self.heads):
            x = stage(x)
            feats.append(x.mean((2, 3)))
            logits.append(head(feats[-1]))
        return logits, feats


class SelfDistiller:
    def __init__(self, model, tau=3.0, weight=0.7):
        self.student, self.tau, self.weight = model, tau, weight

    def compute_distill_losses(self, logits):
        teacher_logit = logits[-1].detach()
        losses = {}
        for i, s in enumerate(logits[:-1]):
            t = F.softmax(teacher_logit / self.tau, 1)
            losses[f"exit{i}.loss_kl"] = self.tau ** 2 * F.kl_div(F.log_softmax(s / self.tau, 1), t, reduction="batchmean")
        return losses

    def train_step(self, data, optimizer):
        logits, _ = self.student(data["img"])
        losses = {f"exit{i}.loss_cls": (1 - self.weight if i < 2 else 1.0) * F.cross_entropy(z, data["gt_label"])
                  for i, z in enumerate(logits)}
        for k, v in self.compute_distill_losses(logits).items():
            losses[k] = self.weight * v
        total = sum(losses.values())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        return {k: round(v.item(), 3) for k, v in losses.items()}


def gratings(n=32):
    y = torch.randint(0, 6, (n,))
    angle = y * 3.1416 / 6 + 0.15 * torch.randn(n)
    g = torch.linspace(-3, 3, 16)
    phase = g[None, :, None] * angle.cos()[:, None, None] + g[None, None] * angle.sin()[:, None, None]
    return {"img": torch.sin(2 * phase + 6.28 * torch.rand(n, 1, 1))[:, None] + 0.7 * torch.randn(n, 1, 16, 16), "gt_label": y}


model = MultiExit()
algorithm = SelfDistiller(model)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
for it in range(120):
    log = algorithm.train_step(gratings(), optimizer)
    if it % 30 == 0:
        print(it, log)
model.eval()
with torch.no_grad():
    d = gratings(500)
    acc = [(z.argmax(1) == d["gt_label"]).float().mean().item() for z in model(d["img"])[0]]
print("exit accuracies", [round(a, 4) for a in acc])
