"""Offline distillation from a file of stored teacher log-probabilities (nucleus-truncated, at most K per token)."""
import argparse
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig


def parse():
    ap = argparse.ArgumentParser()
    ap.add_argument("--vocab", type=int, default=128)
    ap.add_argument("--seq-len", type=int, default=20)
    ap.add_argument("--docs", type=int, default=192)
    ap.add_argument("--k", type=int, default=8)
    ap.add_argument("--top-p", type=float, default=0.95)
    ap.add_argument("--steps", type=int, default=72)
    ap.add_argument("--lr", type=float, default=3e-3)
    ap.add_argument("--seed", type=int, default=21)
    return ap.parse_args()


def corpus(a):
    g = torch.Generator().manual_seed(a.seed)
    table = torch.randint(1, a.vocab, (a.vocab, 4), generator=g)
    weights = torch.tensor([0.6, 0.25, 0.1, 0.05])
    x = torch.randint(1, a.vocab, (a.docs, 1), generator=g)
    for _ in range(a.seq_len - 1):
        choice = torch.multinomial(weights, a.docs, replacement=True, generator=g)
        x = torch.cat([x, table[x[:, -1], choice].unsqueeze(1)], dim=1)
    return x


def new_lm(a, hidden):
    cfg = LlamaConfig(vocab_size=a.vocab, hidden_size=hidden, intermediate_size=hidden * 2, num_hidden_layers=2,
                      num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=64)
    return AutoModelForCausalLM.from_config(cfg)


def train_teacher(a, docs, folder):
    lm = new_lm(a, 48)
    opt = torch.optim.AdamW(lm.parameters(), lr=4e-3)
    for i in range(120):
        rows = docs[torch.randperm(len(docs))[:32]]
        loss = lm(input_ids=rows, labels=rows).loss
        opt.zero_grad()
        loss.backward()
        opt.step()
    print(f"[teacher] nll {loss.item():.3f}")
    lm.save_pretrained(folder)


@torch.no_grad()
def dump_logprobs(a, docs, folder, out_file):
    lm = AutoModelForCausalLM.from_pretrained(folder).eval()
    ids, lps = [], []
    for rows in docs.split(64):
        logp = lm(input_ids=rows).logits[:, :-1].float().log_softmax(-1)
        top_lp, top_id = logp.topk(a.k, dim=-1)
        before = top_lp.exp().cumsum(-1) - top_lp.exp()
        for r in range(len(rows)):
            for t in range(a.seq_len - 1):
                n = int((before[r, t] < a.top_p).sum())
                ids.append(top_id[r, t, :n])
                lps.append(top_lp[r, t, :n])
    torch.save({"ids": ids, "logprobs": lps}, out_file)
    print(f"[dump] {len(ids)} positions, mean kept {sum(map(len, ids)) / len(ids):.2f}")


def load_logprobs(a, in_file):
    blob = torch.load(in_file)
    n = len(blob["ids"])
    ids = torch.zeros(n, a.k, dtype=torch.long)
    logprobs = torch.zeros(n, a.k)
    for i, (row, lp) in enumerate(zip(blob["ids"], blob["logprobs"])):
        ids[i, :len(row)] = row
        logprobs[i, :len(lp)] = lp
    shape = (a.docs, a.seq_len - 1, a.k)
    return ids.view(shape), logprobs.view(shape)


def sparse_kl(student_logits, t_ids, t_logprobs):
    """KL between the teacher restricted (renormalised) to its stored tokens and the full student."""
    s = student_logits.float().log_softmax(-1).gather(-1, t_ids)
    t = t_logprobs - t_logprobs.logsumexp(-1, keepdim=True)
    present = torch.isfinite(t)
    gap = torch.where(present, t, torch.zeros_like(t)) - s
    return (t.exp() * gap * present).sum(-1).mean()


def main():
    a = parse()
    torch.manual_seed(a.seed)
    docs = corpus(a)
    with tempfile.TemporaryDirectory() as tmp:
        tmp = Path(tmp)
        train_teacher(a, docs, tmp / "teacher")
        dump_logprobs(a, docs, tmp / "teacher", tmp / "logprobs.pt")
        t_ids, t_lp = load_logprobs(a, tmp / "logprobs.pt")
    student = new_lm(a, 32).train()
    opt = torch.optim.AdamW(student.parameters(), lr=a.lr)
    order = torch.randperm(a.docs)
    for step in range(a.steps):
        pick = order[(step * 16) % a.docs:(step * 16) % a.docs + 16]
        loss = sparse_kl(student(input_ids=docs[pick]).logits[:, :-1], t_ids[pick], t_lp[pick])
        opt.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        opt.step()
        if step % 24 == 0:
            print(f"[kd] step {step} loss {loss.item():.4f}")
    print(f"final loss {loss.item():.4f}")


if __name__ == "__main__":
    main()
