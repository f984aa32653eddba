"""A policy object mixes the student's own loss with the teacher's, as compression toolkits do."""
from collections import namedtuple
import torch
import torch.nn as nn
import torch.nn.functional as F
from sklearn.datasets import load_digits

DistillationLossWeights = namedtuple("DistillationLossWeights", ["distill", "student", "teacher"])


class KnowledgeDistillationPolicy:
    def __init__(self, student_model, teacher_model, temperature=1.0, loss_weights=DistillationLossWeights(0.5, 0.5, 0)):
        self.student, self.teacher = student_model, teacher_model
        self.temperature = temperature
        self.loss_wts = loss_weights
        self.last_students_logits = self.last_teacher_logits = None

    def forward(self, *inputs):
        with torch.no_grad():
            self.last_teacher_logits = self.teacher(*inputs)
        out = self.student(*inputs)
        self.last_students_logits = out.new_tensor(out, requires_grad=True) if not out.requires_grad else out
        return out

    def before_backward_pass(self, loss):
        soft_log_probs = F.log_softmax(self.last_students_logits / self.temperature, dim=1)
        soft_targets = F.softmax(self.last_teacher_logits / self.temperature, dim=1)
        distillation_loss = F.kl_div(soft_log_probs, soft_targets.detach(), reduction="batchmean")
        distillation_loss_scaled = distillation_loss * self.temperature ** 2
        return self.loss_wts.student * loss + self.loss_wts.distill * distillation_loss_scaled


def net(c):
    return nn.Sequential(nn.Conv2d(1, c, 3, 2, 1), nn.ReLU(), nn.Conv2d(c, c, 3, 2, 1), nn.ReLU(), nn.Flatten(),
                         nn.Linear(4 * c, 10))


def main():
    torch.manual_seed(23)
    d = load_digits()
    x, y = torch.tensor(d.images, dtype=torch.float32)[:, None] / 8 - 1, torch.tensor(d.target)
    tr, te = slice(0, 1300), slice(1300, None)
    teacher, student = net(32), net(8)
    opt = torch.optim.Adam(teacher.parameters(), 3e-3)
    for _ in range(100):
        i = torch.randint(0, 1300, (64,))
        opt.zero_grad(); F.cross_entropy(teacher(x[i]), y[i]).backward(); opt.step()
    policy = KnowledgeDistillationPolicy(student, teacher, temperature=6.0,
                                         loss_weights=DistillationLossWeights(0.7, 0.3, 0))
    noisy = torch.where(torch.rand(len(y)) < 0.3, torch.randint(0, 10, (len(y),)), y)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9)
    for it in range(150):
        i = torch.randint(0, 1300, (64,))
        loss = F.cross_entropy(policy.forward(x[i]), noisy[i])
        total = policy.before_backward_pass(loss)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        if it % 50 == 0:
            print(f"iter {it} classification {loss.item():.4f} overall {total.item():.4f}")
    with torch.no_grad():
        print(f"test top-1 {(student(x[te]).argmax(1) == y[te]).float().mean():.4f}")


if __name__ == "__main__":
    main()
