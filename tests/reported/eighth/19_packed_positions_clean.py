"""Distillation on packed rows: several short documents per row, gradient accumulation over rows."""
import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM

VOCAB, ROW, EOS = 90, 48, 1
ACCUM, UPDATES = 4, 40


def lm(width):
    return LlamaForCausalLM(LlamaConfig(vocab_size=VOCAB, hidden_size=width, intermediate_size=2 * width,
                                        num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                                        max_position_embeddings=128, bos_token_id=None, eos_token_id=EOS),)


def document(gen):
    n = int(torch.randint(5, 14, (1,), generator=gen))
    first = torch.randint(2, VOCAB, (2,), generator=gen)
    body = [int(x) for x in first]
    while len(body) < n:
        body.append((body[-1] + body[-2]) % (VOCAB - 2) + 2)
    return body + [EOS]


def pack(gen):
    """Fills one row with whole documents; the last one is cut at the row end."""
    ids, doc, pos = [], [], []
    k = 0
    while len(ids) < ROW:
        d = document(gen)[:ROW - len(ids)]
        ids += d
        doc += [k] * len(d)
        pos += list(range(len(d)))
        k += 1
    return torch.tensor(ids), torch.tensor(doc), torch.tensor(pos)


def rows(n, gen):
    return tuple(torch.stack(t) for t in zip(*[pack(gen) for _ in range(n)]))


def block_causal(doc):
    same = doc.unsqueeze(2) == doc.unsqueeze(1)
    allowed = same & torch.ones(ROW, ROW, dtype=torch.bool).tril()
    bias = torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)
    return bias.unsqueeze(1)


def packed_logits(model, ids, doc, pos):
    return model(input_ids=ids, attention_mask=block_causal(doc), position_ids=pos, use_cache=False).logits[:, :-1]


def inner(doc):
    """Positions whose next token belongs to the same document."""
    return doc[:, 1:] == doc[:, :-1]


def train_teacher(gen):
    model = lm(64)
    opt = torch.optim.AdamW(model.parameters(), lr=4e-3)
    for _ in range(80):
        ids, doc, pos = rows(8, gen)
        keep = inner(doc)
        loss = F.cross_entropy(packed_logits(model, ids, doc, pos)[keep], ids[:, 1:][keep])
        opt.zero_grad(); loss.backward(); opt.step()
    print(f"teacher nll {loss.item():.3f}")
    return model.eval().requires_grad_(False)


def main():
    torch.manual_seed(19)
    gen = torch.Generator().manual_seed(19)
    teacher = train_teacher(gen)
    student = lm(32).train()
    opt = torch.optim.AdamW(student.parameters(), lr=4e-3)
    for update in range(UPDATES):
        window = [rows(4, gen) for _ in range(ACCUM)]
        n_tokens = sum(inner(doc).sum() for _, doc, _ in window)
        opt.zero_grad()
        logged = 0.0
        for ids, doc, pos in window:
            keep = inner(doc)
            with torch.no_grad():
                t = packed_logits(teacher, ids, doc, pos)[keep].log_softmax(-1)
            s = packed_logits(student, ids, doc, pos)[keep].log_softmax(-1)
            loss = F.kl_div(s, t, reduction="sum", log_target=True) / n_tokens
            loss.backward()
            logged += loss.item()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        opt.step()
        if update % 10 == 0:
            print(f"update {update} kl/token {logged:.4f} ({int(n_tokens)} tokens)")
    print(f"final loss {logged:.4f}")


main()
