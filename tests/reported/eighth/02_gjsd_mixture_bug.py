import math
import tempfile
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from transformers import GPT2Config, GPT2LMHeadModel


@dataclass
class Settings:
    vocab: int = 120
    seq_len: int = 24
    prompt_len: int = 6
    beta: float = 0.3
    lr: float = 2e-3
    epochs: int = 3
    batch_size: int = 16
    seed: int = 11


class ChainText(Dataset):
    """Order-1 chains: every token has three likely successors. First tokens act as the prompt."""
    def __init__(self, cfg, n, seed):
        g = torch.Generator().manual_seed(cfg.seed)
        succ = torch.randint(1, cfg.vocab, (cfg.vocab, 3), generator=g)
        g = torch.Generator().manual_seed(seed)
        self.rows = []
        for _ in range(n):
            length = int(torch.randint(12, cfg.seq_len + 1, (1,), generator=g))
            row = [int(torch.randint(1, cfg.vocab, (1,), generator=g))]
            while len(row) < length:
                pick = int(torch.multinomial(torch.tensor([0.7, 0.2, 0.1]), 1, generator=g))
                row.append(int(succ[row[-1], pick]))
            ids = torch.tensor(row + [0] * (cfg.seq_len - length))
            attn = (torch.arange(cfg.seq_len) < length).long()
            target = attn.bool() & (torch.arange(cfg.seq_len) >= cfg.prompt_len)
            self.rows.append({"input_ids": ids, "attention_mask": attn, "target_mask": target})

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        return self.rows[i]


class GeneralizedJSD(nn.Module):
    def __init__(self, beta):
        super().__init__()
        self.beta = beta

    def forward(self, student_logits, teacher_logits, target_mask):
        keep, b = target_mask[:, 1:], self.beta
        log_s = torch.log_softmax(student_logits[:, :-1][keep].float(), dim=-1)
        log_t = torch.log_softmax(teacher_logits[:, :-1][keep].float(), dim=-1)
        log_m = b * log_t + (1 - b) * log_s
        kl_t = (log_t.exp() * (log_t - log_m)).sum(-1)
        kl_s = (log_s.exp() * (log_s - log_m)).sum(-1)
        return (b * kl_t + (1 - b) * kl_s).mean()


class Distiller:
    def __init__(self, cfg, teacher, student):
        self.cfg, self.teacher, self.student = cfg, teacher.eval().requires_grad_(False), student
        self.criterion = GeneralizedJSD(cfg.beta)
        self.optim = torch.optim.AdamW(student.parameters(), lr=cfg.lr, weight_decay=0.01)

    def loss_on(self, batch):
        inputs = {k: batch[k] for k in ("input_ids", "attention_mask")}
        with torch.autocast("cpu", dtype=torch.bfloat16):
            with torch.no_grad():
                t = self.teacher(**inputs).logits
            s = self.student(**inputs).logits
        return self.criterion(s, t, batch["target_mask"])

    def fit(self, loader):
        for epoch in range(self.cfg.epochs):
            self.student.train()
            for batch in loader:
                loss = self.loss_on(batch)
                self.optim.zero_grad(set_to_none=True)
                loss.backward()
                nn.utils.clip_grad_norm_(self.student.parameters(), 1.0)
                self.optim.step()
            print(f"epoch {epoch} jsd {loss.item():.4f}")

    @torch.no_grad()
    def evaluate(self, loader):
        self.student.eval()
        return sum(self.loss_on(b).item() for b in loader) / len(loader)


def gpt2(cfg, width, layers):
    return GPT2LMHeadModel(GPT2Config(vocab_size=cfg.vocab, n_embd=width, n_layer=layers, n_head=4, n_positions=32))


def pretrain(model, loader, epochs, lr=3e-3):
    opt = torch.optim.AdamW(model.parameters(), lr=lr)
    model.train()
    for _ in range(epochs):
        for b in loader:
            labels = b["input_ids"].masked_fill(b["attention_mask"] == 0, -100)
            loss = model(input_ids=b["input_ids"], attention_mask=b["attention_mask"], labels=labels).loss
            opt.zero_grad(); loss.backward(); opt.step()
    print(f"teacher ready, loss {loss.item():.3f}")


if __name__ == "__main__":
    cfg = Settings()
    torch.manual_seed(cfg.seed)
    train = DataLoader(ChainText(cfg, 320, 1), batch_size=cfg.batch_size, shuffle=True)
    valid = DataLoader(ChainText(cfg, 64, 2), batch_size=cfg.batch_size)
    big = gpt2(cfg, 64, 2)
    pretrain(big, train, 4)
    run = Distiller(cfg, big, gpt2(cfg, 32, 2))
    run.fit(train)
    with tempfile.TemporaryDirectory() as d:
        run.student.save_pretrained(d)
    print(f"final loss (validation) {run.evaluate(valid):.4f}")
