import torch
import torch.nn as nn
import torch.nn.functional as F
from sklearn.datasets import load_digits

torch.manual_seed(24)


class NKDLoss(nn.Module):
    """Target term plus non-target term over the classes other than the label."""

    def __init__(self, temp=1.0, gamma=1.5):
        super().__init__()
        self.temp, self.gamma = temp, gamma

    def forward(self, logit_s, logit_t, gt_label):
        label = gt_label.view(-1, 1)
        s_i, t_i = F.softmax(logit_s, 1), F.softmax(logit_t, 1)
        s_t, t_t = s_i.gather(1, label), t_i.gather(1, label).detach()
        loss_t = -(t_t * torch.log(s_t)).mean()

        mask = torch.ones_like(logit_s).scatter_(1, label, 0).bool()
        logit_s = logit_s[mask].reshape(logit_s.size(0), -1)
        logit_t = logit_t[mask].reshape(logit_t.size(0), -1)
        S_i = F.log_softmax(logit_s / self.temp, dim=1)
        T_i = F.softmax(logit_t / self.temp, dim=1)
        loss_non = -(T_i * S_i).sum(1).mean()
        return loss_t + self.gamma * loss_non * self.temp ** 2


class ConvMixerLite(nn.Module):
    def __init__(self, dim, depth):
        super().__init__()
        self.stem = nn.Conv2d(1, dim, 2, 2)
        self.mix = nn.ModuleList(nn.Sequential(nn.Conv2d(dim, dim, 3, padding=1, groups=dim), nn.GELU(),
                                               nn.Conv2d(dim, dim, 1), nn.GELU()) for _ in range(depth))
        self.head = nn.Linear(dim, 10)

    def forward(self, x):
        x = self.stem(x)
        for m in self.mix:
            x = x + m(x)
        return self.head(x.flatten(2).max(-1).values)


data = load_digits()
images = torch.tensor(data.images, dtype=torch.float32).unsqueeze(1) / 16
target = torch.tensor(data.target)
order = torch.randperm(len(target))
train_idx, test_idx = order[:1300], order[1300:]

teacher = ConvMixerLite(40, 2)
opt = torch.optim.AdamW(teacher.parameters(), lr=1e-2)
for ep in range(4):
    for b in train_idx[torch.randperm(1300)].split(50):
        opt.zero_grad(); F.cross_entropy(teacher(images[b]), target[b]).backward(); opt.step()
teacher.eval()

student, criterion = ConvMixerLite(12, 1), NKDLoss()
optimizer = torch.optim.AdamW(student.parameters(), lr=1e-2)
for ep in range(4):
    for b in train_idx[torch.randperm(1300)].split(50):
        with torch.no_grad():
            t = teacher(images[b])
        s = student(images[b])
        loss = F.cross_entropy(s, target[b]) + 0.5 * criterion(s, t, target[b])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print("epoch", ep, "loss", round(loss.item(), 4))
with torch.no_grad():
    print("accuracy", round((student(images[test_idx]).argmax(1) == target[test_idx]).float().mean().item(), 4))
