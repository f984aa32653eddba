"""KD for a GPT-2 style model with gradient accumulation over sequences of very unequal length."""
import itertools
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from transformers import GPT2Config, GPT2LMHeadModel

torch.manual_seed(13)
PAD, VOCAB = 0, 32
STEP = torch.cat([torch.tensor([0]), 1 + torch.randperm(VOCAB - 1)])


def draw_rows(n, g):
    rows = []
    for _ in range(n):
        length = 4 + int(torch.randint(0, 24, (1,), generator=g))
        tok, row = int(torch.randint(1, VOCAB, (1,), generator=g)), []
        for _ in range(length):
            row.append(tok)
            flip = torch.rand(1, generator=g).item() < 0.2
            tok = int(torch.randint(1, VOCAB, (1,), generator=g)) if flip else int(STEP[tok])
        rows.append(torch.tensor(row))
    return rows


def collate(rows):
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PAD)
    return ids, (ids != PAD).long()


@dataclass
class DistilConfig:
    micro_batch: int = 6
    accumulate: int = 4
    updates: int = 60
    temperature: float = 1.5
    ce_weight: float = 0.3
    lr: float = 0.3
    max_norm: float = 5.0
    gen: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(2))


def lm(width, layers):
    return GPT2LMHeadModel(GPT2Config(
        vocab_size=VOCAB, n_positions=40, n_embd=width, n_layer=layers, n_head=2, bos_token_id=1,
        eos_token_id=1, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0))


def targets(ids, mask):
    return ids[:, 1:].masked_fill(mask[:, 1:] == 0, -100)


def summed_loss(student, teacher, ids, mask, cfg):
    keep = mask[:, 1:].bool()
    with torch.no_grad():
        ref = teacher(input_ids=ids, attention_mask=mask).logits[:, :-1][keep]
    out = student(input_ids=ids, attention_mask=mask).logits[:, :-1][keep]
    T = cfg.temperature
    soft = F.kl_div((out / T).log_softmax(-1), (ref / T).softmax(-1), reduction="sum") * T * T
    hard = F.cross_entropy(out, ids[:, 1:][keep], reduction="sum")
    return (1 - cfg.ce_weight) * soft + cfg.ce_weight * hard, keep.sum()


@torch.no_grad()
def nll(model):
    model.eval()
    ids, mask = collate(draw_rows(150, torch.Generator().manual_seed(77)))
    logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1]
    return F.cross_entropy(logits.flatten(0, 1), targets(ids, mask).flatten(), ignore_index=-100).item()


def train_teacher(model, g):
    opt = torch.optim.AdamW(model.parameters(), lr=3e-3)
    model.train()
    for _ in range(150):
        ids, mask = collate(draw_rows(24, g))
        logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1]
        loss = F.cross_entropy(logits.flatten(0, 1), targets(ids, mask).flatten(), ignore_index=-100)
        opt.zero_grad()
        loss.backward()
        opt.step()
    return model.eval().requires_grad_(False)


def run(cfg):
    teacher = train_teacher(lm(64, 2), cfg.gen)
    print(f"teacher nll {nll(teacher):.3f}")
    student = lm(32, 1)
    opt = torch.optim.SGD(student.parameters(), lr=cfg.lr, momentum=0.9)
    student.train()
    for update in range(cfg.updates):
        window = [collate(draw_rows(cfg.micro_batch, cfg.gen)) for _ in range(cfg.accumulate)]
        opt.zero_grad()
        shown, seen = 0.0, 0
        for ids, mask in window:
            loss, tokens = summed_loss(student, teacher, ids, mask, cfg)
            loss = loss / tokens
            loss.backward()
            shown += loss.item()
            seen += tokens.item()
        torch.nn.utils.clip_grad_norm_(student.parameters(), cfg.max_norm)
        opt.step()
        if update % 15 == 0:
            print(f"update {update} loss {shown:.3f} ({seen} tokens)")
    print(f"student nll {nll(student):.3f}")


run(DistilConfig())
