"""LM distillation from stored top-k teacher log-probabilities (rollout records -> collator -> loss)."""
import torch
from torch import nn
import torch.nn.functional as F
from torch.utils.data import DataLoader
torch.manual_seed(30)
torch.set_num_threads(1)
GEN = torch.Generator().manual_seed(30)
VOCAB, K, PAD, COEF = 32, 6, 0, 2.0
TABLE = torch.softmax(2.5 * torch.randn(VOCAB, VOCAB, generator=GEN), -1)
TABLE[..., PAD] = 0.0


def rollout():
    n, *seq = [torch.randint(lo, hi, (1,), generator=GEN).item() for lo, hi in ((6, 17), (1, VOCAB))]
    while len(seq) < n:
        seq.append(int(torch.multinomial(TABLE[seq[-1]], 1, generator=GEN)))
    return torch.tensor(seq)


class LM(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.emb, self.rnn = nn.Embedding(VOCAB, width, padding_idx=PAD), nn.GRU(width, width, batch_first=True)
        self.head = nn.Linear(width, VOCAB)

    def forward(self, ids):
        return self.head(self.rnn(self.emb(ids))[0])


@torch.no_grad()
def annotate(teacher, seqs):
    tops = [teacher(s[None, :-1])[0].log_softmax(-1).topk(K, dim=-1) for s in seqs]
    return [{"tokens": s, "distill_ids": t.indices, "distill_logprobs": t.values} for s, t in zip(seqs, tops)]


def pad_rows(rows, value):
    return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)


def as_batch(seqs):
    ids = pad_rows(seqs, PAD)
    return {"inputs": ids[:, :-1], "labels": ids[:, 1:], "mask": ids[:, 1:] != PAD}


def collate(records):
    batch = as_batch([r["tokens"] for r in records])
    for key, fill in (("distill_ids", 0), ("distill_logprobs", -30.0)):
        batch[key] = pad_rows([r[key] for r in records], fill)
    return batch


def compute_loss(model, batch):
    logp, mask = model(batch["inputs"]).log_softmax(-1), batch["mask"]
    nll = -(logp.gather(-1, batch["labels"][..., None])[..., 0])[mask].mean()
    distill = torch.zeros(())
    if batch.get("distill_ids") is not None:
        q = batch["distill_logprobs"].softmax(-1)  # renormalised over the stored k tokens
        distill = -(q * logp.gather(-1, batch["distill_ids"])).sum(-1)[mask].mean()
    return nll + COEF * distill, nll, distill


def fit(model, loader, epochs, lr, report=None):
    opt = torch.optim.Adam(model.parameters(), lr=lr)
    for epoch in range(epochs):
        model.train()
        for batch in loader:
            loss, nll, distill = compute_loss(model, batch)
            opt.zero_grad()
            loss.backward()
            opt.step()
        report and report(epoch, loss, nll, distill)


world, held = [rollout() for _ in range(2400)], as_batch([rollout() for _ in range(300)])
teacher = LM(64)
fit(teacher, [as_batch(world[i:i + 32]) for i in range(0, len(world), 32)], 4, 5e-3)
teacher.eval().requires_grad_(False)
student = LM(24)

@torch.no_grad()
def report(epoch, loss, nll, distill):
    gap = F.kl_div(student.eval()(held["inputs"]).log_softmax(-1), teacher(held["inputs"]).softmax(-1), reduction="none")
    print(f"epoch {epoch} loss {loss.item():.4f} nll {nll.item():.4f} distill {distill.item():.4f} "
          f"held-out kl to teacher {gap.sum(-1)[held['mask']].mean().item():.4f}")


loader = DataLoader(annotate(teacher, world[:500]), batch_size=16, shuffle=True, collate_fn=collate)
fit(student, loader, 5, 4e-3, report)
