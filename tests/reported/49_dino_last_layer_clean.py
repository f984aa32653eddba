import copy
import torch
from torch import nn
from torch.nn import functional as F

torch.manual_seed(49)


class ProjectionHead(nn.Module):
    def __init__(self, in_dim, hidden, bottleneck, out, freeze_last_layer=-1):
        super().__init__()
        self.freeze_last_layer = freeze_last_layer
        self.layers = nn.Sequential(nn.Linear(in_dim, hidden), nn.GELU(), nn.Linear(hidden, bottleneck))
        self.last_layer = nn.Linear(bottleneck, out, bias=False)

    def cancel_last_layer_gradients(self, current_epoch):
        if current_epoch < self.freeze_last_layer:
            for p in self.last_layer.parameters():
                p.grad = None

    def forward(self, x):
        return self.last_layer(F.normalize(self.layers(x), dim=-1))


class DINO(nn.Module):
    def __init__(self):
        super().__init__()
        backbone = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU())
        self.student_backbone, self.teacher_backbone = backbone, copy.deepcopy(backbone)
        self.student_head = ProjectionHead(32, 48, 16, 24, freeze_last_layer=2)
        self.teacher_head = ProjectionHead(32, 48, 16, 24)
        self.teacher_head.load_state_dict(self.student_head.state_dict())
        for m in (self.teacher_backbone, self.teacher_head):
            m.requires_grad_(False)
        self.register_buffer("center", torch.zeros(24))

    def training_step(self, views):
        with torch.no_grad():
            t = [self.teacher_head(self.teacher_backbone(v)) for v in views]
        s = [self.student_head(self.student_backbone(v)) for v in views]
        targets = [F.softmax((a - self.center) / 0.05, -1) for a in t]
        loss = -0.5 * sum((targets[i] * F.log_softmax(s[1 - i] / 0.1, -1)).sum(-1).mean() for i in (0, 1))
        self.center.lerp_(torch.cat(t).mean(0), 0.1)
        return loss

    def on_after_backward(self, epoch):
        self.student_head.cancel_last_layer_gradients(epoch)
        self.teacher_head.cancel_last_layer_gradients(epoch)

    @torch.no_grad()
    def update_momentum(self, m):
        for a, b in ((self.student_backbone, self.teacher_backbone), (self.student_head, self.teacher_head)):
            for q, k in zip(a.parameters(), b.parameters()):
                k.mul_(m).add_(q, alpha=1 - m)


def pair(basis, n=64):
    y = torch.randint(0, 8, (n,))
    core = basis[y]
    return [core + 0.5 * torch.randn(n, 32) for _ in range(2)], y


basis = torch.randn(8, 32)
model = DINO()
params = [p for m in (model.student_backbone, model.student_head) for p in m.parameters()]
optimizer = torch.optim.SGD(params, lr=0.1, momentum=0.9, weight_decay=1e-4)
for epoch in range(5):
    for _ in range(25):
        views, _ = pair(basis)
        loss = model.training_step(views)
        optimizer.zero_grad()
        loss.backward()
        model.on_after_backward(epoch)
        optimizer.step()
        model.update_momentum(0.98)
    print(f"epoch {epoch} loss {loss.item():.4f}")
with torch.no_grad():
    (a, b), y = pair(basis, 400)
    fa, fb = (F.normalize(model.teacher_backbone(v), dim=-1) for v in (a, b))
    acc = (y[(fa @ fb.T).argmax(1)] == y).float().mean()
print(f"nearest-neighbour accuracy {acc.item():.4f}")
