"""On-policy self-distillation with two low-rank adapters on one base: `student` learns, `teacher` is its average."""
import torch
import torch.nn as nn
import torch.nn.functional as F

torch.manual_seed(52)
V, L = 20, 10


class MultiLoRA(nn.Module):
    def __init__(self, base, r=4):
        super().__init__()
        self.base, self.r = base.requires_grad_(False), r
        self.down, self.up = nn.ParameterDict(), nn.ParameterDict()
        self.active = None

    def add_adapter(self, name):
        self.down[name] = nn.Parameter(torch.randn(self.r, self.base.in_features) * 0.1)
        self.up[name] = nn.Parameter(torch.zeros(self.base.out_features, self.r))

    def set_adapter(self, name):
        self.active = name
        for table in (self.down, self.up):
            for k, p in table.items():
                p.requires_grad_(k == name)

    def forward(self, x):
        return self.base(x) + x @ self.down[self.active].T @ self.up[self.active].T


class LM(nn.Module):
    def __init__(self, d=32):
        super().__init__()
        self.emb = nn.Embedding(V, d).requires_grad_(False)
        self.conv = nn.Conv1d(d, d, 2).requires_grad_(False)
        self.fc, self.head = MultiLoRA(nn.Linear(d, d)), MultiLoRA(nn.Linear(d, V))

    def adapters(self):
        return [self.fc, self.head]

    def forward(self, ids, adapter):
        for m in self.adapters():
            m.active = adapter
        h = self.emb(ids)
        h = h + torch.tanh(self.conv(F.pad(h.transpose(1, 2), (1, 0)))).transpose(1, 2)
        return self.head(F.relu(self.fc(h)))


class AdapterEMA:
    def __init__(self, model, decay):
        self.model, self.decay = model, decay
        for m in model.adapters():
            m.add_adapter("teacher")
        self._write(0.0)

    @torch.no_grad()
    def _write(self, decay):
        for m in self.model.adapters():
            for table in (m.down, m.up):
                table["teacher"].mul_(decay).add_(table["student"], alpha=1 - decay)

    def step(self):
        self._write(self.decay)


model = LM()
for m in model.adapters():
    m.add_adapter("student")
ema = AdapterEMA(model, decay=0.9)
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.05)
for it in range(100):
    start, inc = torch.randint(0, V, (32, 1)), torch.randint(1, 4, (32, 1))
    ids = (start + inc * torch.arange(L)) % V
    hinted = ids.clone()
    ids[:, -2:] = torch.where(torch.rand(32, 2) < 0.3, torch.randint(0, V, (32, 2)), ids[:, -2:])
    teacher_logits = model(hinted, "teacher")[:, :-1]
    student_logits = model(ids, "student")[:, :-1]
    ce = F.cross_entropy(student_logits.transpose(1, 2), ids[:, 1:])
    kd = F.kl_div(F.log_softmax(student_logits, -1), F.log_softmax(teacher_logits, -1), log_target=True,
                  reduction="none").sum(-1).mean()
    loss = ce + 0.5 * kd
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], 1.0)
    optimizer.step()
    ema.step()
    if it % 25 == 0:
        print(f"{it} ce {ce.item():.4f} kd {kd.item():.5f}")
print(f"last ce {ce.item():.4f} kd {kd.item():.5f}")
