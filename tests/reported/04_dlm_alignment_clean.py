import torch
import torch.nn as nn
import torch.nn.functional as F

torch.manual_seed(11)


class CausalNet(nn.Module):
    """A small causal LM: dilated causal convolutions."""

    def __init__(self, vocab, width, depth):
        super().__init__()
        self.embed = nn.Embedding(vocab, width)
        self.convs = nn.ModuleList(nn.Conv1d(width, width, 2, dilation=2 ** i) for i in range(depth))
        self.lm_head = nn.Linear(width, vocab)

    def forward(self, ids):
        h = self.embed(ids).transpose(1, 2)
        for i, c in enumerate(self.convs):
            h = h + F.gelu(c(F.pad(h, (2 ** i, 0))))
        return self.lm_head(h.transpose(1, 2))


class TCSTrainer:
    """Target-concrete-score style distillation of a student LM against a larger LM."""

    def __init__(self, student, teacher, lr=2e-3, temperature=2.0, lambda_tcs=1.0, lambda_ce=0.5):
        self.student = student
        self.teacher = teacher.eval().requires_grad_(False)
        self.optim = torch.optim.AdamW(self.student.parameters(), lr=lr)
        self.T, self.l_tcs, self.l_ce = temperature, lambda_tcs, lambda_ce

    def tcs_loss(self, student_logits, teacher_logits, attention_mask):
        teacher_al = teacher_logits[:, :-1, :].contiguous()
        student_al = student_logits[:, :-1, :].contiguous()
        keep = attention_mask[:, 1:].float()
        kl = F.kl_div(F.log_softmax(student_al / self.T, -1), F.softmax(teacher_al / self.T, -1),
                      reduction="none").sum(-1)
        return (kl * keep).sum() / keep.sum() * self.T ** 2

    def training_step(self, ids, attention_mask):
        logits = self.student(ids)
        with torch.no_grad():
            t_logits = self.teacher(ids)
        ce = F.cross_entropy(logits[:, :-1].transpose(1, 2), ids[:, 1:])
        tcs = self.tcs_loss(logits, t_logits, attention_mask)
        loss = self.l_ce * ce + self.l_tcs * tcs
        self.optim.zero_grad(set_to_none=True)
        loss.backward()
        self.optim.step()
        return ce.item(), tcs.item()


def batch(n=24, length=18, vocab=20):
    a = torch.randint(0, vocab, (n, 1))
    b = torch.randint(1, 5, (n, 1))
    ids = (a + b * torch.arange(length)) % vocab
    return ids, torch.ones_like(ids)


teacher = CausalNet(20, 48, 3)
topt = torch.optim.AdamW(teacher.parameters(), lr=3e-3)
for _ in range(100):
    ids, _ = batch()
    loss = F.cross_entropy(teacher(ids)[:, :-1].transpose(1, 2), ids[:, 1:])
    topt.zero_grad(); loss.backward(); topt.step()

trainer = TCSTrainer(CausalNet(20, 20, 2), teacher)
for i in range(120):
    ce, tcs = trainer.training_step(*batch())
    if i % 40 == 0:
        print(f"{i} ce={ce:.3f} tcs={tcs:.3f}")
print(f"last ce={ce:.4f} tcs={tcs:.4f}")
