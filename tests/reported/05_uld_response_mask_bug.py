"""Universal-logit distillation between LMs of unlike vocabularies, scored on responses only."""
import torch
import torch.nn as nn
import torch.nn.functional as F

torch.manual_seed(5)
V_S, V_T, LEN, PROMPT = 26, 34, 14, 8


class LM(nn.Module):
    def __init__(self, v_in, v_out, d):
        super().__init__()
        self.e = nn.Embedding(v_in, d)
        self.g = nn.GRU(d, d, batch_first=True)
        self.o = nn.Linear(d, v_out)

    def forward(self, ids):
        h, _ = self.g(self.e(ids))
        return self.o(h)


def get_batch(n=24):
    start = torch.randint(2, V_S, (n, 1))
    ids = (start + 3 * torch.arange(LEN)) % (V_S - 2) + 2
    ids[:, :PROMPT] = torch.randint(2, V_S, (n, PROMPT))
    ids[:, PROMPT - 1] = start[:, 0]
    labels = ids.clone()
    labels[:, :PROMPT] = -100
    cut = torch.randint(PROMPT + 2, LEN + 1, (n, 1))
    beyond = torch.arange(LEN)[None] >= cut
    ids[beyond] = 1
    labels[beyond] = -100
    return ids, labels


def uld_loss(student_logits, teacher_logits, labels):
    width = max(student_logits.size(-1), teacher_logits.size(-1))
    sp = F.softmax(student_logits[:, :-1], -1)
    tp = F.softmax(teacher_logits[:, :-1], -1)
    sp = F.pad(sp, (0, width - sp.size(-1))).sort(-1, descending=True).values
    tp = F.pad(tp, (0, width - tp.size(-1))).sort(-1, descending=True).values
    dist = (sp - tp).abs().sum(-1)
    keep = labels[:, :-1] != -100
    return dist[keep].mean()


def ce_loss(logits, labels):
    return F.cross_entropy(logits[:, :-1].transpose(1, 2), labels[:, 1:], ignore_index=-100)


teacher = LM(V_S, V_T, 48)
opt_t = torch.optim.Adam(teacher.parameters(), lr=8e-3)
for _ in range(120):
    ids, labels = get_batch()
    opt_t.zero_grad()
    ce_loss(teacher(ids), labels).backward()
    opt_t.step()
teacher.requires_grad_(False).eval()

student = LM(V_S, V_S, 20)
opt = torch.optim.Adam(student.parameters(), lr=5e-3)
for step in range(100):
    ids, labels = get_batch()
    s = student(ids)
    with torch.no_grad():
        t = teacher(ids)
    loss_ce = ce_loss(s, labels)
    loss_kd = uld_loss(s, t, labels)
    loss = 0.3 * loss_ce + 1.5 * loss_kd
    opt.zero_grad()
    loss.backward()
    opt.step()
    if (step + 1) % 25 == 0:
        print("step", step + 1, "ce %.4f uld %.4f" % (loss_ce.item(), loss_kd.item()))
with torch.no_grad():
    ids, labels = get_batch(200)
    print("eval ce %.4f" % ce_loss(student(ids), labels).item())
