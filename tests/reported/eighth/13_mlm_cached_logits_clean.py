"""Compress a BERT encoder with masked-LM distillation; the teacher is run once and its outputs are cached."""
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset
from transformers import BertConfig, BertForMaskedLM

PAD, CLS, SEP, MASK, FIRST = 0, 1, 2, 3, 4


class MaskedCorpus(Dataset):
    def __init__(self, n, vocab, length, seed, mask_prob=0.2):
        g = torch.Generator().manual_seed(seed)
        stride = torch.randint(1, 6, (n, 1), generator=g)
        start = torch.randint(0, vocab - FIRST, (n, 1), generator=g)
        body = (start + stride * torch.arange(length - 2)) % (vocab - FIRST) + FIRST
        keep = torch.arange(length - 2) < torch.randint(8, length - 1, (n, 1), generator=g)
        body = body * keep
        ids = torch.cat([torch.full((n, 1), CLS), body, torch.full((n, 1), PAD)], dim=1)
        self.ids = ids.scatter(1, keep.sum(1, keepdim=True) + 1, SEP)
        self.mask_prob = mask_prob
        self.seed = seed
        self.gen = torch.Generator().manual_seed(seed)

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index):
        ids = self.ids[index]
        gen = torch.Generator().manual_seed(self.seed * 100003 + index)
        chosen = (torch.rand(ids.shape, generator=gen) < self.mask_prob) & (ids >= FIRST)
        chosen[1 + int(torch.randint(0, 8, (1,), generator=gen))] = True
        return {"index": index, "input_ids": ids.masked_fill(chosen, MASK), "attention_mask": (ids != PAD).long(),
                "labels": ids.masked_fill(~chosen, -100)}


class TeacherCache:
    """Runs the teacher for examples it has not met yet, remembers the (half precision) logits."""

    def __init__(self, teacher):
        self.teacher, self.store = teacher, {}

    @torch.no_grad()
    def __call__(self, batch):
        keys = batch["index"].tolist()
        fresh = [i for i, k in enumerate(keys) if k not in self.store]
        if fresh:
            logits = self.teacher(input_ids=batch["input_ids"][fresh],
                                  attention_mask=batch["attention_mask"][fresh]).logits
            for row, i in zip(logits, fresh):
                self.store[keys[i]] = row.half()
        return torch.stack([self.store[k] for k in keys]).float()


def bert(vocab, width, depth):
    return BertForMaskedLM(BertConfig(vocab_size=vocab, hidden_size=width, num_hidden_layers=depth,
                                      num_attention_heads=4, intermediate_size=2 * width,
                                      max_position_embeddings=32, pad_token_id=PAD))


def fit_mlm(model, loader, steps):
    opt = torch.optim.AdamW(model.parameters(), lr=3e-3)
    model.train()
    it = iter(loader)
    for _ in range(steps):
        try:
            b = next(it)
        except StopIteration:
            it = iter(loader)
            b = next(it)
        loss = model(input_ids=b["input_ids"], attention_mask=b["attention_mask"], labels=b["labels"]).loss
        opt.zero_grad(); loss.backward(); opt.step()
    print(f"teacher mlm loss {loss.item():.3f}")
    return model.eval().requires_grad_(False)


def train(vocab=44, length=18, epochs=5, tau=2.0):
    torch.manual_seed(8)
    teacher = fit_mlm(bert(vocab, 64, 2), DataLoader(MaskedCorpus(512, vocab, length, 1), 32, shuffle=True), 120)
    loader = DataLoader(MaskedCorpus(256, vocab, length, 2), batch_size=16, shuffle=True)
    cached = TeacherCache(teacher)
    student = bert(vocab, 32, 1)
    opt = torch.optim.AdamW(student.parameters(), lr=3e-3, weight_decay=0.01)
    for epoch in range(epochs):
        student.train()
        total = 0.0
        for b in loader:
            t = cached(b)
            s = student(input_ids=b["input_ids"], attention_mask=b["attention_mask"]).logits
            spot = b["labels"] != -100
            kd = F.kl_div(F.log_softmax(s[spot] / tau, -1), F.log_softmax(t[spot] / tau, -1),
                          reduction="batchmean", log_target=True) * tau ** 2
            ce = F.cross_entropy(s[spot], b["labels"][spot])
            loss = 0.8 * kd + 0.2 * ce
            opt.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
            opt.step()
            total += loss.item()
        print(f"epoch {epoch + 1}/{epochs} loss {total / len(loader):.4f} (cache {len(cached.store)})")
    return total / len(loader)


if __name__ == "__main__":
    print(f"final loss {train():.4f}")
