import torch
import torch.nn as nn
import torch.nn.functional as F

torch.manual_seed(2)
VOCAB, TOPK, MAXLEN = 32, 4, 16


class MiniGPT(nn.Module):
    def __init__(self, dim, heads=2, layers=1):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(VOCAB, dim), nn.Embedding(MAXLEN, dim)
        enc = nn.TransformerEncoderLayer(dim, heads, 4 * dim, 0.0, batch_first=True, activation="gelu")
        self.h = nn.TransformerEncoder(enc, layers, enable_nested_tensor=False)
        self.lm_head = nn.Linear(dim, VOCAB, bias=False)

    def forward(self, ids):
        n = ids.size(1)
        m = torch.triu(torch.ones(n, n, dtype=torch.bool), 1)
        return self.lm_head(self.h(self.wte(ids) + self.wpe.weight[:n], mask=m))


class RolloutServer:
    """Serves groups of token lists, with the teacher's top-k answer for each position."""

    def __init__(self, teacher):
        self.teacher = teacher.eval()

    @torch.no_grad()
    def fetch(self, n):
        group = []
        for _ in range(n):
            length = int(torch.randint(6, MAXLEN + 1, (1,)))
            a, d = torch.randint(0, VOCAB, (2,)).tolist()
            toks = torch.tensor([(a + (d % 5 + 1) * i) % VOCAB for i in range(length)])
            noisy = torch.where(torch.rand(length) < 0.25, torch.randint(0, VOCAB, (length,)), toks)
            lp, idx = F.log_softmax(self.teacher(toks[None])[0], -1).topk(TOPK)
            group.append({"tokens": noisy, "distill_token_ids": idx, "distill_logprobs": lp})
        return group


def pad_data(group):
    fields = {"tokens": 0}
    out = {k: nn.utils.rnn.pad_sequence([g[k] for g in group], batch_first=True, padding_value=v)
           for k, v in fields.items()}
    lens = torch.tensor([len(g["tokens"]) for g in group])
    out["mask"] = (torch.arange(1, out["tokens"].size(1))[None] < lens[:, None]).float()
    return out


def train_loss(model, batch, distill_alpha=0.7):
    logits = model(batch["tokens"])[:, :-1]
    logp = F.log_softmax(logits, -1)
    mask = batch["mask"]
    nll = -logp.gather(-1, batch["tokens"][:, 1:, None]).squeeze(-1)
    loss = (nll * mask).sum() / mask.sum()
    if batch.get("distill_logprobs") is not None:
        p = batch["distill_logprobs"][:, :-1].softmax(-1)
        kd = -(p * logp.gather(-1, batch["distill_token_ids"][:, :-1])).sum(-1)
        loss = (1 - distill_alpha) * loss + distill_alpha * (kd * mask).sum() / mask.sum()
    return loss


teacher = MiniGPT(48, layers=2)
opt = torch.optim.AdamW(teacher.parameters(), lr=3e-3)
for _ in range(120):
    ids = (torch.randint(0, VOCAB, (32, 1)) + torch.randint(1, 6, (32, 1)) * torch.arange(MAXLEN)) % VOCAB
    loss = F.cross_entropy(teacher(ids)[:, :-1].transpose(1, 2), ids[:, 1:])
    opt.zero_grad(); loss.backward(); opt.step()

server = RolloutServer(teacher)
student = MiniGPT(24)
opt = torch.optim.AdamW(student.parameters(), lr=3e-3)
for step in range(60):
    loss = train_loss(student, pad_data(server.fetch(12)))
    opt.zero_grad()
    loss.backward()
    opt.step()
    if step % 20 == 0:
        print(f"step {step} loss {loss.item():.4f}")
print(f"end loss {loss.item():.4f}")
