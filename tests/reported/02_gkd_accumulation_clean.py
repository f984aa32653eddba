"""Token-level distillation with gradient accumulation over micro-batches of uneven length."""
import argparse
import torch
import torch.nn as nn
import torch.nn.functional as F

IGNORE = -100


class TinyLM(nn.Module):
    def __init__(self, vocab, dim, depth):
        super().__init__()
        self.emb = nn.Embedding(vocab, dim)
        self.pos = nn.Parameter(torch.randn(32, dim) * 0.02)
        layer = nn.TransformerEncoderLayer(dim, 2, dim * 2, dropout=0.0, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.head = nn.Linear(dim, vocab)

    def forward(self, ids):
        n = ids.size(1)
        causal = nn.Transformer.generate_square_subsequent_mask(n)
        return self.head(self.blocks(self.emb(ids) + self.pos[:n], mask=causal, is_causal=True))


def micro_batch(args, gen):
    ids = torch.randint(1, args.vocab, (args.micro, 24), generator=gen)
    ids[:, 1:] = (ids[:, :1] * 3 + torch.arange(1, 24) * ids[:, :1]) % (args.vocab - 1) + 1
    labels = ids.clone()
    n_resp = int(torch.randint(2, 20, (1,), generator=gen))
    labels[:, : 24 - n_resp] = IGNORE
    return ids, labels


def reverse_kl_sum(student_logits, teacher_logits, labels, temperature):
    s = F.log_softmax(student_logits[:, :-1] / temperature, -1)
    t = F.log_softmax(teacher_logits[:, :-1] / temperature, -1)
    per_tok = F.kl_div(t, s, reduction="none", log_target=True).sum(-1)
    valid = labels[:, 1:] != IGNORE
    return per_tok[valid].sum(), valid.sum()


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--vocab", type=int, default=30)
    ap.add_argument("--micro", type=int, default=4)
    ap.add_argument("--accum", type=int, default=4)
    ap.add_argument("--steps", type=int, default=60)
    ap.add_argument("--temperature", type=float, default=1.0)
    args = ap.parse_args([])
    torch.manual_seed(1)
    gen = torch.Generator().manual_seed(1)
    teacher, student = TinyLM(args.vocab, 32, 2), TinyLM(args.vocab, 16, 1)

    opt_t = torch.optim.Adam(teacher.parameters(), lr=3e-3)
    for _ in range(80):
        ids, _ = micro_batch(args, gen)
        loss = F.cross_entropy(teacher(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        opt_t.zero_grad(); loss.backward(); opt_t.step()
    teacher.eval().requires_grad_(False)

    opt = torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9)
    for step in range(args.steps):
        window = [micro_batch(args, gen) for _ in range(args.accum)]
        num_items = sum((y[:, 1:] != IGNORE).sum() for _, y in window)
        opt.zero_grad()
        shown = 0.0
        for ids, labels in window:
            with torch.no_grad():
                t_logits = teacher(ids)
            total, n_valid = reverse_kl_sum(student(ids), t_logits, labels, args.temperature)
            loss = total / num_items
            loss.backward()
            shown += loss.item()
        opt.step()
        if step % 20 == 0:
            print(f"step {step:3d} items {int(num_items)} kl {shown:.4f}")
    print(f"final kl {shown:.5f}")


if __name__ == "__main__":
    main()
