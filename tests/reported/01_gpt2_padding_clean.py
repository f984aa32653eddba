import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader
from transformers import GPT2Config, GPT2LMHeadModel

torch.manual_seed(0)
VOCAB, PAD, MAXLEN = 40, 0, 20


def build(width, layers):
    cfg = GPT2Config(vocab_size=VOCAB, n_positions=MAXLEN, n_embd=width, n_layer=layers, n_head=2,
                     bos_token_id=1, eos_token_id=2, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    return GPT2LMHeadModel(cfg)


def make_corpus(n):
    rows = []
    for _ in range(n):
        length = int(torch.randint(5, MAXLEN + 1, (1,)))
        start, step = torch.randint(3, VOCAB, (1,)).item(), torch.randint(1, 4, (1,)).item()
        rows.append([3 + (start + step * i) % (VOCAB - 3) for i in range(length)])
    return rows


def collate(rows):
    ids = torch.full((len(rows), MAXLEN), PAD)
    mask = torch.zeros(len(rows), MAXLEN, dtype=torch.long)
    for i, r in enumerate(rows):
        ids[i, : len(r)] = torch.tensor(r)
        mask[i, : len(r)] = 1
    return {"input_ids": ids, "attention_mask": mask}


def pretrain(model, loader, epochs=3):
    opt = torch.optim.AdamW(model.parameters(), lr=4e-3)
    for _ in range(epochs):
        for b in loader:
            out = model(input_ids=b["input_ids"], attention_mask=b["attention_mask"]).logits[:, :-1]
            loss = F.cross_entropy(out.reshape(-1, VOCAB), b["input_ids"][:, 1:].reshape(-1), ignore_index=PAD)
            opt.zero_grad(); loss.backward(); opt.step()


class DistillRun:
    def __init__(self, student, teacher, temperature=2.0, alpha=0.5):
        self.student, self.teacher = student, teacher.eval()
        self.t, self.alpha = temperature, alpha
        self.opt = torch.optim.AdamW(student.parameters(), lr=3e-3)

    def compound_loss(self, s_logits, t_logits, labels):
        s, t, y = s_logits[:, :-1], t_logits[:, :-1], labels[:, 1:]
        keep = y != -100
        s, t, y = s[keep], t[keep], y[keep]
        hard = F.cross_entropy(s, y)
        soft = F.kl_div(F.log_softmax(s / self.t, -1), F.softmax(t / self.t, -1), reduction="batchmean") * self.t ** 2
        return (1 - self.alpha) * hard + self.alpha * soft

    def step(self, inputs):
        labels = inputs["input_ids"].clone()
        labels[inputs["attention_mask"] == 0] = -100
        s_logits = self.student(**inputs).logits
        with torch.no_grad():
            t_logits = self.teacher(**inputs).logits
        loss = self.compound_loss(s_logits, t_logits, labels)
        self.opt.zero_grad()
        loss.backward()
        self.opt.step()
        return loss.item()


if __name__ == "__main__":
    loader = DataLoader(make_corpus(240), batch_size=16, shuffle=True, collate_fn=collate)
    teacher, student = build(48, 2), build(24, 1)
    pretrain(teacher, loader)
    run = DistillRun(student, teacher)
    for epoch in range(3):
        losses = [run.step(b) for b in loader]
        print(f"epoch {epoch} loss {sum(losses) / len(losses):.4f}")
    print("done", round(losses[-1], 4))
