"""Hint-based distillation: forward hooks collect intermediate maps, a 1x1 projector matches the channel counts."""

import math
import os
import tempfile

import torch
import torch.nn as nn
import torch.nn.functional as F

torch.manual_seed(2024)
NUM_CLASSES, BETA, TEMP, LR, STEPS, BS = 6, 0.5, 4.0, 0.05, 45, 40


class ConvNet(nn.Module):
    def __init__(self, w1, w2):
        super().__init__()
        self.layer1 = nn.Sequential(nn.Conv2d(3, w1, 3, padding=1), nn.BatchNorm2d(w1), nn.ReLU(), nn.MaxPool2d(2))
        self.layer2 = nn.Sequential(nn.Conv2d(w1, w2, 3, padding=1), nn.BatchNorm2d(w2), nn.ReLU(), nn.MaxPool2d(2))
        self.head = nn.Linear(w2, NUM_CLASSES)

    def forward(self, x):
        x = self.layer2(self.layer1(x))
        return self.head(x.mean(dim=(-2, -1)))


class FeatureTap:
    def __init__(self, module):
        self.value = None
        self.handle = module.register_forward_hook(self._hook)

    def _hook(self, module, args, output):
        self.value = output


base = torch.randn(NUM_CLASSES, 3, 4, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)


def draw(n):
    y = torch.randint(NUM_CLASSES, (n,))
    return base[y] + 1.5 * torch.randn(n, 3, 16, 16), y


def top1(net, x, y):
    net.eval()
    with torch.no_grad():
        return (net(x).argmax(1) == y).float().mean().item()


def train_and_store_teacher(path, x, y):
    net = ConvNet(16, 32)
    opt = torch.optim.Adam(net.parameters(), lr=5e-3)
    for _ in range(30):
        i = torch.randint(len(x), (BS,))
        opt.zero_grad()
        F.cross_entropy(net(x[i]), y[i]).backward()
        opt.step()
    torch.save(net.state_dict(), path)


xtr, ytr = draw(600)
xte, yte = draw(240)
checkpoint = os.path.join(tempfile.mkdtemp(), "teacher.pt")
train_and_store_teacher(checkpoint, xtr, ytr)

teacher = ConvNet(16, 32)
weights = torch.load(checkpoint)
own = teacher.state_dict()
own.update({k: v for k, v in weights.items() if k in own and v.shape == own[k].shape})
teacher.load_state_dict(own)
print("teacher acc", top1(teacher, xte, yte))

student = ConvNet(8, 12)
projector = nn.Conv2d(12, 32, kernel_size=1)
tap_t, tap_s = FeatureTap(teacher.layer2), FeatureTap(student.layer2)
optimizer = torch.optim.SGD(
    [{"params": student.parameters()}, {"params": projector.parameters(), "lr": LR}], lr=LR, momentum=0.9
)
cosine = lambda step: 0.5 * (1 + math.cos(math.pi * step / STEPS))  # noqa: E731
scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lr_lambda=[cosine, cosine])

teacher.eval()
student.train()
for step in range(STEPS):
    i = torch.randint(len(xtr), (BS,))
    x, y = xtr[i], ytr[i]
    with torch.no_grad():
        t_logits = teacher(x)
    s_logits = student(x)
    hint = F.mse_loss(projector(tap_s.value), tap_t.value)
    kd = F.kl_div((s_logits / TEMP).log_softmax(1), (t_logits / TEMP).softmax(1), reduction="batchmean") * TEMP**2
    loss = F.cross_entropy(s_logits, y) + kd + BETA * hint
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_([*student.parameters(), *projector.parameters()], max_norm=1.0)
    optimizer.step()
    scheduler.step()
    if step % 15 == 0:
        print(f"step {step:3d} hint {hint.item():.3f} loss {loss.item():.3f}")
for tap in (tap_t, tap_s):
    tap.handle.remove()
print("student acc", top1(student, xte, yte))
