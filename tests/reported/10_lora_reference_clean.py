"""Fine-tune LoRA adapters on a new task; the bare base model serves as the teacher on replay text."""
import contextlib
import math
import torch
import torch.nn as nn
import torch.nn.functional as F

torch.manual_seed(10)
V, N = 22, 12


class LoRALinear(nn.Module):
    def __init__(self, base, r=4, alpha=8):
        super().__init__()
        self.base = base
        self.lora_A = nn.Parameter(torch.randn(r, base.in_features) / math.sqrt(base.in_features))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, r))
        self.scale, self.active = alpha / r, True

    def forward(self, x):
        low_rank = self.scale * (x @ self.lora_A.T @ self.lora_B.T)
        return self.base(x) + low_rank if self.active else self.base(x)


class LM(nn.Module):
    def __init__(self, d=32):
        super().__init__()
        self.emb = nn.Embedding(V, d)
        self.mix = nn.Conv1d(d, d, 3)
        self.fc1, self.fc2, self.head = nn.Linear(d, 2 * d), nn.Linear(2 * d, d), nn.Linear(d, V)

    def forward(self, ids):
        h = self.emb(ids)
        h = h + F.relu(self.mix(F.pad(h.transpose(1, 2), (2, 0)))).transpose(1, 2)
        h = h + self.fc2(F.gelu(self.fc1(h)))
        return self.head(h)


class PeftLM(nn.Module):
    def __init__(self, base):
        super().__init__()
        self.base_model = base.requires_grad_(False)
        base.fc1, base.fc2, base.head = LoRALinear(base.fc1), LoRALinear(base.fc2), LoRALinear(base.head)

    def _layers(self):
        return [m for m in self.modules() if isinstance(m, LoRALinear)]
    @contextlib.contextmanager
    def disable_adapter(self):
        for m in self._layers():
            m.active = False
        try:
            yield
        finally:
            for m in self._layers():
                m.active = True

    def forward(self, ids):
        return self.base_model(ids)


def text(step, n=24):
    return (torch.randint(0, V, (n, 1)) + step * torch.arange(N)) % V


def nll(logits, ids):
    return F.cross_entropy(logits[:, :-1].transpose(1, 2), ids[:, 1:])


base = LM()
opt = torch.optim.Adam(base.parameters(), lr=5e-3)
for _ in range(80):
    ids = text(2)
    opt.zero_grad(); nll(base(ids), ids).backward(); opt.step()

student = PeftLM(base)
optimizer = torch.optim.AdamW([p for p in student.parameters() if p.requires_grad], lr=5e-3)
for it in range(100):
    new, replay = text(5), text(2)
    with torch.no_grad():
        with student.disable_adapter():
            teacher_logits = student(replay)
    task = nll(student(new), new)
    keep = F.kl_div(F.log_softmax(student(replay), -1), F.softmax(teacher_logits, -1), reduction="none").sum(-1).mean()
    loss = task + 2.0 * keep
    optimizer.zero_grad(); loss.backward(); optimizer.step()
    if it % 25 == 0:
        print(f"{it} task {task.item():.4f} keep {keep.item():.4f}")
with torch.no_grad():
    a, b = text(2, 100), text(5, 100)
    print(f"old-task nll {nll(student(a), a).item():.4f} new-task nll {nll(student(b), b).item():.4f}")
