"""MiniLMv2-style deep self-attention relation distillation for a small text encoder."""
import tempfile

import torch
from torch import nn
from transformers import BertConfig, BertForMaskedLM, BertModel


class Config:
    vocab, length, relation_heads = 90, 16, 8
    teacher_width, student_width = 64, 32
    steps, batch_size, lr = 60, 16, 2e-3


def sentences(n, gen):
    """Arithmetic progressions with noise, right padded with 0. 1 = [CLS], 2 = [SEP], 3 = [MASK]."""
    step = torch.randint(1, 4, (n, 1), generator=gen)
    body = (torch.randint(0, 86, (n, 1), generator=gen) + step * torch.arange(Config.length - 2)) % 86 + 4
    lengths = torch.randint(7, Config.length - 1, (n, 1), generator=gen)
    body = body * (torch.arange(Config.length - 2) < lengths)
    ids = torch.cat([torch.ones(n, 1, dtype=torch.long), body, torch.zeros(n, 1, dtype=torch.long)], dim=1)
    ids = ids.scatter(1, lengths + 1, 2)
    return ids, (ids != 0).long()


class QKVTap:
    """Collects the query/key/value projections of one self-attention layer."""

    def __init__(self, bert, layer):
        block = bert.encoder.layer[layer].attention.self
        self.out = {}
        for name in ("query", "key", "value"):
            getattr(block, name).register_forward_hook(self._keep(name))

    def _keep(self, name):
        def hook(_module, _inputs, output):
            self.out[name] = output
        return hook


def split_heads(x, heads):
    b, length, width = x.shape
    return x.reshape(b, heads, length, width // heads)


def log_relation(x, mask, heads):
    h = split_heads(x, heads)
    scores = h @ h.transpose(-1, -2) / h.size(-1) ** 0.5
    scores = scores.masked_fill(mask[:, None, None, :] == 0, torch.finfo(scores.dtype).min)
    return scores.log_softmax(-1)


def relation_loss(student_qkv, teacher_qkv, mask, heads):
    loss = 0.0
    for name in ("query", "key", "value"):
        log_s = log_relation(student_qkv[name], mask, heads)
        log_t = log_relation(teacher_qkv[name], mask, heads)
        kl = (log_t.exp() * (log_t - log_s)).sum(-1)
        rows = mask[:, None, :].expand_as(kl)
        loss = loss + (kl * rows).sum() / rows.sum()
    return loss


def bert_config(width, layers):
    return BertConfig(vocab_size=Config.vocab, hidden_size=width, num_hidden_layers=layers, num_attention_heads=4,
                      intermediate_size=2 * width, max_position_embeddings=32)


def pretrained_teacher(gen):
    mlm = BertForMaskedLM(bert_config(Config.teacher_width, 2))
    opt = torch.optim.AdamW(mlm.parameters(), lr=3e-3)
    mlm.train()
    for _ in range(120):
        ids, mask = sentences(32, gen)
        hide = (torch.rand(ids.shape, generator=gen) < 0.2) & (ids >= 4)
        hide[:, 3] = True
        out = mlm(input_ids=ids.masked_fill(hide, 3), attention_mask=mask, labels=ids.masked_fill(~hide, -100))
        opt.zero_grad()
        out.loss.backward()
        opt.step()
    print(f"teacher mlm {out.loss.item():.3f}")
    return mlm.bert.eval().requires_grad_(False)


def main():
    torch.manual_seed(14)
    gen = torch.Generator().manual_seed(14)
    teacher = pretrained_teacher(gen)
    student = BertModel(bert_config(Config.student_width, 2), add_pooling_layer=False)
    t_tap, s_tap = QKVTap(teacher, -1), QKVTap(student, -1)
    opt = torch.optim.AdamW(student.parameters(), lr=Config.lr)
    sched = torch.optim.lr_scheduler.LinearLR(opt, 1.0, 0.1, total_iters=Config.steps)
    student.train()
    for step in range(Config.steps):
        ids, mask = sentences(Config.batch_size, gen)
        with torch.no_grad():
            teacher(input_ids=ids, attention_mask=mask)
        student(input_ids=ids, attention_mask=mask)
        loss = relation_loss(s_tap.out, t_tap.out, mask, Config.relation_heads)
        opt.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        opt.step()
        sched.step()
        if step % 15 == 0:
            print(f"step {step} relation kl {loss.item():.4f}")
    with tempfile.TemporaryDirectory() as out:
        student.save_pretrained(out)
    print(f"final loss {loss.item():.4f}")


if __name__ == "__main__":
    main()
