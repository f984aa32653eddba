import torch
from torch import nn
import torch.nn.functional as F


class Seq2Tag(nn.Module):
    def __init__(self, vocab=40, dim=32, out=12, p=0.2):
        super().__init__()
        self.emb = nn.Embedding(vocab, dim)
        layer = nn.TransformerEncoderLayer(dim, 4, 64, dropout=p, batch_first=True)
        self.body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.drop = nn.Dropout(p)
        self.out = nn.Linear(dim, out)

    def forward(self, ids, lengths=None):
        return self.out(self.drop(self.body(self.emb(ids))))


class SelfDistillationTrainer:
    """The teacher is the live model, given the demonstration in its context; the student sees the bare prompt."""

    def __init__(self, model, teacher_model=None, lr=2e-3, alpha=0.5):
        self.model = model
        self.teacher_model = teacher_model if teacher_model is not None else model
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
        self.alpha = alpha

    def teacher_logits(self, demo, prompt):
        self.teacher_model.eval()
        with torch.no_grad():
            logits = self.teacher_model(torch.cat([demo, prompt], 1))[:, demo.size(1):]
        return logits

    def compute_loss(self, batch):
        target = self.teacher_logits(batch["demo"], batch["prompt"])
        logits = self.model(batch["prompt"])
        kd = F.kl_div(F.log_softmax(logits, -1).flatten(0, 1), F.softmax(target, -1).flatten(0, 1), reduction="batchmean")
        ce = F.cross_entropy(logits.flatten(0, 1), batch["tags"].flatten())
        return self.alpha * kd + (1 - self.alpha) * ce

    def training_step(self, batch):
        self.model.train()
        loss = self.compute_loss(batch)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        return loss.item()


def draw(gen, n=24):
    prompt = torch.randint(0, 20, (n, 8), generator=gen)
    tags = (prompt // 2 + prompt.roll(1, 1) % 3) % 12
    return {"prompt": prompt, "tags": tags, "demo": tags + 20}


def main():
    torch.manual_seed(12)
    gen = torch.Generator().manual_seed(0)
    trainer = SelfDistillationTrainer(Seq2Tag())
    for step in range(80):
        loss = trainer.training_step(draw(gen))
        if step % 20 == 0:
            print("step", step, "loss", round(loss, 4))
    trainer.model.eval()
    b = draw(gen, 256)
    with torch.no_grad():
        acc = (trainer.model(b["prompt"]).argmax(-1) == b["tags"]).float().mean()
    print(f"accuracy {acc:.4f}")


main()
