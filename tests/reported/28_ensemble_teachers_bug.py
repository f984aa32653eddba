import torch
import torch.nn as nn
import torch.nn.functional as F
from sklearn.datasets import load_digits

torch.manual_seed(28)


class ClassifierEnsemble(nn.Module):
    def __init__(self, *nets):
        super().__init__()
        self.components = nn.ModuleList(nets)

    def forward(self, x):
        return torch.stack([c(x) for c in self.components], dim=1)


class TeacherStudentFwdCrossEntLoss:
    """Mean over teachers of the forward cross entropy, at a temperature."""

    def __init__(self, temp):
        self.temp = temp

    def __call__(self, teacher_logits, student_logits):
        teacher_probs = F.softmax(teacher_logits / self.temp, dim=-1)
        student_logp = F.log_softmax(student_logits / self.temp, dim=-1)
        num_teachers = len(teacher_logits)
        cross = -(teacher_probs * student_logp.unsqueeze(1)).sum(-1)
        return self.temp ** 2 * cross.sum(1).mean() / num_teachers


class ClassifierStudentLoss:
    def __init__(self, student, base_loss, alpha=0.3):
        self.student, self.base_loss, self.alpha = student, base_loss, alpha

    def __call__(self, inputs, targets, teacher_logits):
        student_logits = self.student(inputs)
        hard = F.cross_entropy(student_logits, targets)
        soft = self.base_loss(teacher_logits, student_logits)
        return self.alpha * hard + (1 - self.alpha) * soft, hard


def mlp(h):
    return nn.Sequential(nn.Linear(64, h), nn.Tanh(), nn.Linear(h, 10))


d = load_digits()
x = torch.tensor(d.data, dtype=torch.float32) / 16
y = torch.tensor(d.target)
tr, te = torch.arange(1200), torch.arange(1200, len(y))
teachers = [mlp(48) for _ in range(3)]
for t in teachers:
    opt = torch.optim.Adam(t.parameters(), lr=5e-3)
    for _ in range(60):
        i = tr[torch.randint(0, 1200, (48,))]
        opt.zero_grad(); F.cross_entropy(t(x[i]), y[i]).backward(); opt.step()
teacher = ClassifierEnsemble(*teachers).eval()

student = mlp(12)
criterion = ClassifierStudentLoss(student, TeacherStudentFwdCrossEntLoss(2.0))
optimizer = torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9, nesterov=True)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 120)
for step in range(120):
    i = tr[torch.randint(0, 1200, (48,))]
    with torch.no_grad():
        logits = teacher(x[i])
    loss, hard = criterion(x[i], y[i], logits)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    scheduler.step()
    if step % 40 == 0:
        print(f"step {step}: loss {loss.item():.4f} hard {hard.item():.4f}")
with torch.no_grad():
    fid = (student(x[te]).argmax(1) == teacher(x[te]).mean(1).argmax(1)).float().mean()
print(f"teacher agreement {fid:.4f}")
