import torch
import torch.nn as nn
import torch.nn.functional as TF

torch.manual_seed(14)
VOCAB, MASK, SEQ = 30, 1, 16


class MaskedLM(nn.Module):
    def __init__(self, d, layers):
        super().__init__()
        self.emb = nn.Embedding(VOCAB, d)
        self.pos = nn.Parameter(torch.zeros(SEQ, d).normal_(std=0.1))
        self.enc = nn.TransformerEncoder(nn.TransformerEncoderLayer(d, 2, 2 * d, 0.0, batch_first=True), layers,
                                         enable_nested_tensor=False)
        self.cls = nn.Linear(d, VOCAB)

    def forward(self, input_ids):
        return {"logits": self.cls(self.enc(self.emb(input_ids) + self.pos))}


class DistillationModifier:
    def __init__(self, teacher, hardness=0.5, temperature=2.0):
        self._teacher = teacher
        self._hardness = hardness
        self._temperature = temperature

    def _calc_distill_loss(self, student_val, teacher_val):
        return (
            TF.kl_div(
                input=TF.log_softmax(student_val / self._temperature, dim=-1),
                target=TF.softmax(teacher_val / self._temperature, dim=-1),
                reduction="batchmean",
            )
            * self._temperature ** 2
        )

    def loss_update(self, loss, student_outputs, student_inputs):
        with torch.no_grad():
            teacher_outputs = self._teacher(**student_inputs)
        distill = [self._calc_distill_loss(student_outputs[k], teacher_outputs[k]) for k in student_outputs]
        return (1.0 - self._hardness) * loss + self._hardness * sum(distill) / len(distill)


def corrupted(n=24):
    full = (torch.randint(0, 28, (n, 1)) + 3 * torch.arange(SEQ)) % 28 + 2
    hide = torch.rand(n, SEQ) < 0.25
    return full.masked_fill(hide, MASK), full.masked_fill(~hide, -100)


def mlm(out, labels):
    return TF.cross_entropy(out["logits"].view(-1, VOCAB), labels.view(-1), ignore_index=-100)


teacher = MaskedLM(40, 2)
opt = torch.optim.Adam(teacher.parameters(), lr=2e-3)
for _ in range(100):
    x, y = corrupted()
    opt.zero_grad(); mlm(teacher(x), y).backward(); opt.step()
teacher.eval()

model = MaskedLM(20, 1)
modifier = DistillationModifier(teacher)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
for step in range(100):
    x, y = corrupted()
    inputs = {"input_ids": x}
    outputs = model(**inputs)
    task = mlm(outputs, y)
    loss = modifier.loss_update(task, outputs, inputs)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 25 == 0:
        print(f"{step}: mlm {task.item():.3f} total {loss.item():.3f}")
print(f"final mlm {task.item():.4f}")
