import torch
import torch.nn as nn
import torch.nn.functional as F

torch.manual_seed(18)
VOCAB = 512


class Draft(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.emb = nn.Embedding(VOCAB, d)
        self.gru = nn.GRU(d, d, batch_first=True)
        self.norm = nn.LayerNorm(d)
        self.lm_head = nn.Linear(d, VOCAB)

    def forward(self, ids):
        h = self.emb(ids)
        with torch.autocast("cpu", enabled=False):
            h = self.gru(h.float())[0]
        return self.lm_head(self.norm(h))


def kl_div_loss(draft_logits, target_logits):
    log_q = torch.log_softmax(draft_logits, dim=-1, dtype=draft_logits.dtype)
    p = torch.softmax(target_logits, dim=-1, dtype=target_logits.dtype)
    return (p * (p.clamp_min(1e-20).log() - log_q)).sum(-1)


def acceptance(draft_logits, target_logits):
    return torch.minimum(draft_logits.float().softmax(-1), target_logits.float().softmax(-1)).sum(-1).mean()


def stream(n=16, length=12):
    return (torch.randint(0, VOCAB, (n, 1)) + 7 * torch.randint(0, 3, (n, length)).cumsum(1)) % VOCAB


target = Draft(64)
opt = torch.optim.Adam(target.parameters(), lr=5e-3)
for _ in range(60):
    ids = stream()
    ce = F.cross_entropy(target(ids)[:, :-1].transpose(1, 2), ids[:, 1:])
    opt.zero_grad(); ce.backward(); opt.step()
target.eval().requires_grad_(False)

draft = Draft(64)
draft.load_state_dict(target.state_dict())
with torch.no_grad():
    for p in draft.parameters():
        p.add_(0.03 * torch.randn_like(p))
optimizer = torch.optim.Adam(draft.parameters(), lr=1e-3)
for step in range(80):
    ids = stream()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with torch.no_grad():
            t_logits = target(ids)
        d_logits = draft(ids)
    with torch.autocast("cpu", enabled=False):
        loss = kl_div_loss(d_logits, t_logits).float().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 20 == 0:
        print(f"{step} loss {loss.item():.5f} acceptance {acceptance(d_logits, t_logits).item():.4f}")
print(f"acceptance {acceptance(d_logits, t_logits).item():.5f}")
