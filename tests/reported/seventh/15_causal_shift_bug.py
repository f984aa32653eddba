"""Character-level causal transformer distillation (logit matching on the shifted window)."""
from dataclasses import dataclass
import torch
from torch import nn
import torch.nn.functional as F

torch.manual_seed(15)
torch.set_num_threads(1)

@dataclass
class CausalLMOutput:
    logits: torch.Tensor
    loss: torch.Tensor = None


class CausalLM(nn.Module):
    def __init__(self, vocab, d, heads, layers, max_len):
        super().__init__()
        self.tok, self.pos = nn.Embedding(vocab, d), nn.Embedding(max_len, d)
        block = nn.TransformerEncoderLayer(d, heads, 2 * d, dropout=0.0, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(block, layers, enable_nested_tensor=False)
        self.lm_head = nn.Linear(d, vocab)

    def forward(self, ids, labels=None):
        n = ids.shape[1]
        causal = torch.triu(torch.full((n, n), float("-inf")), 1)
        h = self.blocks(self.tok(ids) + self.pos(torch.arange(n)), mask=causal)
        logits, loss = self.lm_head(h), None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return CausalLMOutput(logits, loss)


def markov_text(n, length, vocab, g):
    table = torch.softmax(3 * torch.randn(vocab, vocab, generator=g), -1)
    out = [torch.randint(0, vocab, (n,), generator=g)]
    for _ in range(length - 1):
        out.append(torch.multinomial(table[out[-1]], 1, generator=g)[:, 0])
    return torch.stack(out, 1)


def logit_kl(student_logits, teacher_logits, T):
    s = F.log_softmax(student_logits.flatten(0, 1) / T, -1)
    t = F.softmax(teacher_logits.flatten(0, 1) / T, -1)
    return F.kl_div(s, t, reduction="batchmean") * T * T


def training_step(student, teacher, ids, T=2.0, lam=1.0):
    out = student(ids, labels=ids)
    with torch.no_grad():
        ref = teacher(ids)
    aligned_teacher_logits = ref.logits[:, :-1, :]
    aligned_student_logits = out.logits[:, 1:, :]
    kd = logit_kl(aligned_student_logits, aligned_teacher_logits, T)
    return out.loss, lam * kd


def main(vocab=24, length=20):
    g = torch.Generator().manual_seed(15)
    text = markov_text(1200, length, vocab, g)
    train, val = text[:1000], text[1000:]

    teacher = CausalLM(vocab, 48, 4, 2, length)
    opt = torch.optim.AdamW(teacher.parameters(), lr=3e-3)
    for step in range(90):
        ids = train[torch.randint(0, len(train), (32,), generator=g)]
        opt.zero_grad()
        teacher(ids, labels=ids).loss.backward()
        opt.step()
    teacher.eval().requires_grad_(False)
    print(f"teacher val loss {teacher(val, labels=val).loss.item():.4f}")

    student = CausalLM(vocab, 24, 2, 1, length)
    opt = torch.optim.AdamW(student.parameters(), lr=4e-3)
    for step in range(1, 161):
        student.train()
        ids = train[torch.randint(0, len(train), (32,), generator=g)]
        ce, kd = training_step(student, teacher, ids)
        opt.zero_grad()
        (ce + kd).backward()
        opt.step()
        if step % 40 == 0:
            student.eval()
            with torch.no_grad():
                v = student(val, labels=val).loss.item()
            print(f"step {step} ce {ce.item():.4f} kd {kd.item():.4f} val loss {v:.4f}")


if __name__ == "__main__":
    main()
