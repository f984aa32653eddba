"""Mean-teacher semi-supervised digits: a consistency term against an averaged network."""
import copy
import torch
import torch.nn as nn
import torch.nn.functional as F
from sklearn.datasets import load_digits

torch.manual_seed(46)


def convnet():
    return nn.Sequential(nn.Conv2d(1, 12, 3, 1, 1), nn.BatchNorm2d(12), nn.LeakyReLU(0.1), nn.MaxPool2d(2),
                         nn.Conv2d(12, 24, 3, 1, 1), nn.BatchNorm2d(24), nn.LeakyReLU(0.1), nn.AdaptiveAvgPool2d(2),
                         nn.Flatten(), nn.Linear(96, 10))


def update_ema_variables(model, ema_model, alpha, global_step):
    alpha = min(1 - 1 / (global_step + 1), alpha)
    with torch.no_grad():
        for ema_param, param in zip(ema_model.parameters(), model.parameters()):
            ema_param.mul_(alpha).add_(param, alpha=1 - alpha)


def sigmoid_rampup(current, length):
    phase = 1.0 - min(current, length) / length
    return float(torch.exp(torch.tensor(-5.0 * phase * phase)))


def perturb(x):
    return x + 0.15 * torch.randn_like(x)


d = load_digits()
perm = torch.randperm(len(d.target))
X = (torch.tensor(d.images, dtype=torch.float32)[:, None] / 16)[perm]
Y = torch.tensor(d.target)[perm]
labeled, unlabeled, test = slice(0, 80), slice(80, 1200), slice(1200, None)

model = convnet()
ema_model = copy.deepcopy(model)
for p in ema_model.parameters():
    p.requires_grad_(False)
ema_model.eval()
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-4)
for step in range(120):
    i, j = torch.randint(0, 80, (32,)), torch.randint(80, 1200, (32,))
    x = torch.cat([X[i], X[j]])
    model_out = model(perturb(x))
    ema_out = ema_model(perturb(x))
    class_loss = F.cross_entropy(model_out[:32], Y[i])
    weight = 20.0 * sigmoid_rampup(step, 60)
    consistency_loss = weight * F.mse_loss(model_out.softmax(1), ema_out.softmax(1))
    optimizer.zero_grad()
    (class_loss + consistency_loss).backward()
    optimizer.step()
    update_ema_variables(model, ema_model, 0.95, step + 1)
    if step % 30 == 0:
        print(f"{step} class {class_loss.item():.4f} cons {consistency_loss.item():.4f}")
model.eval()
with torch.no_grad():
    acc = [(m(X[test]).argmax(1) == Y[test]).float().mean().item() for m in (model, ema_model)]
print(f"student {acc[0]:.4f} averaged teacher {acc[1]:.4f}")
