import torch
import torch.nn as nn
import torch.nn.functional as F

torch.manual_seed(21)
VOCAB, SEQ = 28, 15


class Decoder(nn.Module):
    def __init__(self, d, n):
        super().__init__()
        self.tok = nn.Embedding(VOCAB, d)
        self.pos = nn.Embedding(SEQ, d)
        blk = nn.TransformerEncoderLayer(d, 4, 2 * d, dropout=0.0, batch_first=True)
        self.tr = nn.TransformerEncoder(blk, n, enable_nested_tensor=False)
        self.fc = nn.Linear(d, VOCAB)
        self.register_buffer("causal", torch.triu(torch.full((SEQ, SEQ), float("-inf")), 1))

    def forward(self, ids):
        n = ids.shape[1]
        return self.fc(self.tr(self.tok(ids) + self.pos.weight[:n], mask=self.causal[:n, :n]))


class WhiteBoxDistiller:
    def __init__(self, student, teacher, distillation_type="forward_kld", kd_ratio=0.7):
        self.student, self.teacher = student, teacher
        self.distillation_type, self.kd_ratio = distillation_type, kd_ratio

    def kd_loss(self, student_logits, teacher_probs, mask):
        student_logits = student_logits.reshape(-1, VOCAB)
        teacher_probs = teacher_probs.reshape(-1, VOCAB)
        if self.distillation_type == "forward_kld":
            loss = F.kl_div(F.log_softmax(student_logits, dim=-1), teacher_probs, reduction="none")
        else:
            loss = F.kl_div(torch.log(teacher_probs.clamp(min=1e-10)), F.softmax(student_logits, -1), reduction="none")
        loss = loss.sum(dim=-1)
        return (loss * mask.view(-1)).sum() / mask.sum()

    def __call__(self, ids, mask):
        with torch.no_grad():
            teacher_probs = F.softmax(self.teacher(ids)[:, :-1], dim=-1)
        logits = self.student(ids)[:, :-1]
        lm = F.cross_entropy(logits.reshape(-1, VOCAB), ids[:, 1:].reshape(-1), reduction="none")
        lm = (lm * mask.reshape(-1)).sum() / mask.sum()
        return self.kd_ratio * self.kd_loss(logits, teacher_probs, mask) + (1 - self.kd_ratio) * lm


def data(n=20):
    x = torch.randint(0, VOCAB, (n, SEQ))
    x[:, 2:] = (x[:, :1] + x[:, 1:2] * torch.arange(2, SEQ)) % VOCAB
    mask = (torch.arange(1, SEQ)[None] < torch.randint(4, SEQ + 1, (n, 1))).float()
    return x, mask.contiguous()


teacher_model, student_model = Decoder(32, 2), Decoder(16, 1)
opt = torch.optim.Adam(teacher_model.parameters(), 3e-3)
for _ in range(80):
    x, m = data()
    l = F.cross_entropy(teacher_model(x)[:, :-1].transpose(1, 2), x[:, 1:])
    opt.zero_grad(); l.backward(); opt.step()
teacher_model.eval()
distiller = WhiteBoxDistiller(student_model, teacher_model)
opt = torch.optim.SGD(student_model.parameters(), lr=0.2)
for i in range(100):
    x, m = data()
    loss = distiller(x, m)
    opt.zero_grad()
    loss.backward()
    opt.step()
    if i % 25 == 0:
        print(i, loss.item())
print("finished, loss", loss.item())
