import torch
import torch.nn as nn
import torch.nn.functional as F
from sklearn.datasets import load_digits

torch.manual_seed(22)


def block(i, o, p):
    return nn.Sequential(nn.Linear(i, o), nn.BatchNorm1d(o), nn.ReLU(), nn.Dropout(p))


class KDModelWrapper(nn.Module):
    KD_LAST = "kd_last_comparison"

    def __init__(self, student_model, teacher_model, temperature=2.0):
        super().__init__()
        self.student_model = student_model
        self.teacher_model = teacher_model
        self.temperature = temperature
        self.teacher_model.requires_grad_(False)
        self.teacher_model.eval()

    def forward(self, x):
        s = self.student_model(x)
        if not self.training:
            return s, None
        with torch.no_grad():
            t = self.teacher_model(x)
        T = self.temperature
        kd = F.kl_div(F.log_softmax(s / T, 1), F.log_softmax(t / T, 1), log_target=True, reduction="batchmean") * T ** 2
        return s, kd


digits = load_digits()
perm = torch.randperm(len(digits.target))
X = (torch.tensor(digits.data, dtype=torch.float32) / 16)[perm]
Y = torch.tensor(digits.target)[perm]
Xtr, Ytr, Xva, Yva = X[:1400], Y[:1400], X[1400:], Y[1400:]

teacher = nn.Sequential(block(64, 128, 0.4), block(128, 64, 0.4), nn.Linear(64, 10))
opt = torch.optim.AdamW(teacher.parameters(), lr=5e-3)
for it in range(120):
    i = torch.randint(0, 1400, (64,))
    opt.zero_grad()
    F.cross_entropy(teacher(Xtr[i]), Ytr[i]).backward()
    opt.step()

model = KDModelWrapper(nn.Sequential(block(64, 20, 0.0), nn.Linear(20, 10)), teacher)
optimizer = torch.optim.AdamW(model.student_model.parameters(), lr=5e-3)
for epoch in range(5):
    model.train()
    for i in torch.randperm(1400).split(64):
        logits, kd = model(Xtr[i])
        loss = 0.2 * F.cross_entropy(logits, Ytr[i]) + 0.8 * kd
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        acc = (model(Xva)[0].argmax(1) == Yva).float().mean().item()
    print(f"epoch {epoch} kd {kd.item():.4f} val acc {acc:.4f}")
print(f"best effort accuracy {acc:.4f}")
