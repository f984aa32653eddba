"""A small vision transformer with a distillation token, trained against a convolutional teacher."""
import torch
from torch import nn
import torch.nn.functional as F
from sklearn.datasets import load_digits


class DistillableViT(nn.Module):
    def __init__(self, dim=24, depth=2, heads=2, num_classes=10):
        super().__init__()
        self.to_patch = nn.Conv2d(1, dim, 2, 2)
        self.cls_token = nn.Parameter(torch.randn(1, 1, dim) * 0.02)
        self.pos = nn.Parameter(torch.randn(1, 17, dim) * 0.02)
        layer = nn.TransformerEncoderLayer(dim, heads, 2 * dim, 0.0, batch_first=True)
        self.transformer = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.mlp_head = nn.Linear(dim, num_classes)

    def forward(self, img, distill_token=None):
        x = self.to_patch(img).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos
        if distill_token is not None:
            x = torch.cat([x, distill_token.expand(len(x), -1, -1)], 1)
        x = self.transformer(x)
        out = self.mlp_head(x[:, 0])
        return (out, x[:, -1]) if distill_token is not None else out


class DistillWrapper(nn.Module):
    def __init__(self, *, teacher, student, temperature=1.0, alpha=0.5, dim=24, num_classes=10):
        super().__init__()
        self.teacher, self.student = teacher, student
        self.temperature = temperature
        self.alpha = alpha  # share of the distillation loss
        self.distillation_token = nn.Parameter(torch.randn(1, 1, dim) * 0.02)
        self.distill_mlp = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, num_classes))

    def forward(self, img, labels):
        T, alpha = self.temperature, self.alpha
        with torch.no_grad():
            teacher_logits = self.teacher(img)
        student_logits, distill_tokens = self.student(img, distill_token=self.distillation_token)
        distill_logits = self.distill_mlp(distill_tokens)
        loss = F.cross_entropy(student_logits, labels)
        distill_loss = F.kl_div(F.log_softmax(distill_logits / T, -1), F.softmax(teacher_logits / T, -1).detach(),
                                reduction="batchmean") * T ** 2
        return loss * (1 - alpha) + distill_loss * alpha


torch.manual_seed(25)
digits = load_digits()
X, Y = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16, torch.tensor(digits.target)
teacher = nn.Sequential(nn.Conv2d(1, 24, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(216, 64), nn.ReLU(), nn.Linear(64, 10))
opt = torch.optim.Adam(teacher.parameters(), 3e-3)
for _ in range(120):
    i = torch.randint(0, 1400, (64,))
    opt.zero_grad(); F.cross_entropy(teacher(X[i]), Y[i]).backward(); opt.step()
teacher.eval().requires_grad_(False)
distiller = DistillWrapper(teacher=teacher, student=DistillableViT(), temperature=3.0, alpha=0.8)
opt = torch.optim.AdamW([p for p in distiller.parameters() if p.requires_grad], lr=3e-3)
for step in range(80):
    i = torch.randint(0, 1400, (48,))
    loss = distiller(X[i], Y[i])
    opt.zero_grad()
    loss.backward()
    opt.step()
    if step % 25 == 0:
        print(step, round(loss.item(), 4))
with torch.no_grad():
    print("student accuracy", round((distiller.student(X[1400:]).argmax(-1) == Y[1400:]).float().mean().item(), 4))
