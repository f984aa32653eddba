"""Token classification: logits and last hidden states of a BERT tagger go into a smaller one."""
import random

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.data import DataLoader
from transformers import BertConfig, BertForTokenClassification

random.seed(4)
torch.manual_seed(4)
PAD, VOCAB, TAGS, T = 0, 40, 5, 2.0
LEXICON = [random.randrange(TAGS) for _ in range(VOCAB)]


def sentence():
    words = [random.randrange(2, VOCAB) for _ in range(random.randint(4, 20))]
    tags = [LEXICON[w] if i == 0 or words[i - 1] % 4 else (LEXICON[w] + 1) % TAGS for i, w in enumerate(words)]
    return words, tags


def collate(rows):
    width = max(len(w) for w, _ in rows)
    ids = torch.full((len(rows), width), PAD)
    tags = torch.full((len(rows), width), -100)
    for i, (w, t) in enumerate(rows):
        ids[i, :len(w)] = torch.tensor(w)
        tags[i, :len(t)] = torch.tensor(t)
    return {"input_ids": ids, "attention_mask": (ids != PAD).long(), "labels": tags}


def tagger(hidden, layers):
    return BertForTokenClassification(BertConfig(
        vocab_size=VOCAB, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=4,
        intermediate_size=2 * hidden, max_position_embeddings=32, num_labels=TAGS))


def inputs_of(batch):
    return {k: batch[k] for k in ("input_ids", "attention_mask")}


def masked_mean(per_token, mask):
    return (per_token * mask).sum() / mask.sum()


def hidden_loss(pred, target, mask, kind="cosine"):
    if kind == "cosine":
        per_token = 1 - F.cosine_similarity(pred, target, dim=-1)
        return per_token.mean()
    per_token = (pred - target).pow(2).mean(-1)
    return masked_mean(per_token, mask)


def logit_loss(pred, target, mask):
    per_token = F.kl_div((pred / T).log_softmax(-1), (target / T).softmax(-1), reduction="none").sum(-1)
    return masked_mean(per_token, mask) * T * T


@torch.no_grad()
def f_acc(model, loader):
    model.eval()
    good = total = 0
    for batch in loader:
        keep = batch["labels"] != -100
        pred = model(**inputs_of(batch)).logits.argmax(-1)
        good += (pred[keep] == batch["labels"][keep]).sum().item()
        total += keep.sum().item()
    return good / total


train = DataLoader([sentence() for _ in range(900)], batch_size=24, shuffle=True, collate_fn=collate)
dev = DataLoader([sentence() for _ in range(200)], batch_size=50, collate_fn=collate)

senior = tagger(64, 2)
opt = torch.optim.AdamW(senior.parameters(), lr=3e-3)
for _ in range(5):
    senior.train()
    for batch in train:
        opt.zero_grad()
        senior(**batch).loss.backward()
        opt.step()
senior.eval().requires_grad_(False)
print("senior", round(f_acc(senior, dev), 3))

junior, project = tagger(32, 1), nn.Linear(32, 64)
params = list(junior.parameters()) + list(project.parameters())
opt = torch.optim.AdamW(params, lr=3e-3)
for epoch in range(4):
    junior.train()
    for batch in train:
        mask = batch["attention_mask"].float()
        with torch.no_grad():
            ref = senior(**inputs_of(batch), output_hidden_states=True)
        out = junior(**inputs_of(batch), output_hidden_states=True)
        soft = logit_loss(out.logits, ref.logits, mask)
        feat = hidden_loss(project(out.hidden_states[-1]), ref.hidden_states[-1], mask)
        hard = F.cross_entropy(out.logits.flatten(0, 1), batch["labels"].flatten(), ignore_index=-100)
        loss = soft + feat + 0.5 * hard
        opt.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        opt.step()
    print(f"epoch {epoch} soft {soft.item():.3f} feat {feat.item():.3f} junior {f_acc(junior, dev):.3f}")
