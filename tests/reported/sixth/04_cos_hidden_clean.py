import torch, torch.nn as nn, torch.nn.functional as F

torch.manual_seed(1207)
CONFIG = dict(vocab=40, pad=0, classes=4, d_t=48, d_s=24, loss_type="cosine", hidden_weight=1.0, steps=100, batch=32)


def corpus(n):
    """Bag of topical words; sentences are between 4 and 16 words long."""
    y = torch.randint(CONFIG["classes"], (n,))
    lens = torch.randint(4, 17, (n,))
    words = torch.randint(1, 40, (n, 16))
    topical = 1 + 9 * y[:, None] + torch.randint(0, 9, (n, 16))
    ids = torch.where(torch.rand(n, 16) < 0.45, topical, words)
    ids[torch.arange(16)[None] >= lens[:, None]] = 0
    return ids, y


class Encoder(nn.Module):
    def __init__(self, width, depth):
        super().__init__()
        self.tok = nn.Embedding(CONFIG["vocab"], width)
        self.pos = nn.Parameter(0.1 * torch.randn(16, width))
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True)
        self.body = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.cls = nn.Linear(width, CONFIG["classes"])

    def forward(self, ids):
        void = ids == CONFIG["pad"]
        h = self.body(self.tok(ids) + self.pos, src_key_padding_mask=void)
        live = (~void).unsqueeze(-1).float()
        return h, self.cls((h * live).sum(1) / live.sum(1))


class HiddenLoss(nn.Module):
    def __init__(self, kind, d_s, d_t):
        super().__init__()
        self.kind = kind
        self.up = nn.Linear(d_s, d_t)

    def forward(self, h_s, h_t, loss_mask):
        h_s = self.up(h_s)
        if self.kind == "mse":
            loss = F.mse_loss(h_s, h_t, reduction="none").mean(-1)
        elif self.kind == "cosine":
            loss = 1.0 - F.cosine_similarity(h_s, h_t, dim=-1)
        else:
            raise ValueError(self.kind)
        loss_mask = loss_mask.to(loss.dtype)
        return (loss * loss_mask).sum() / loss_mask.sum()


def evaluate(model, ids, y):
    model.eval()
    with torch.no_grad():
        return (model(ids)[1].argmax(1) == y).float().mean().item()


test_ids, test_y = corpus(600)
teacher = Encoder(CONFIG["d_t"], 2)
opt = torch.optim.AdamW(teacher.parameters(), lr=2e-3)
for _ in range(120):
    ids, y = corpus(48)
    loss = F.cross_entropy(teacher(ids)[1], y)
    opt.zero_grad(); loss.backward(); opt.step()
print("teacher acc", evaluate(teacher, test_ids, test_y))
for p in teacher.parameters():
    p.requires_grad = False

student = Encoder(CONFIG["d_s"], 1)
hidden_loss = HiddenLoss(CONFIG["loss_type"], CONFIG["d_s"], CONFIG["d_t"])
opt = torch.optim.AdamW([*student.parameters(), *hidden_loss.parameters()], lr=3e-3)
for step in range(CONFIG["steps"]):
    student.train()
    ids, y = corpus(CONFIG["batch"])
    h_s, logits = student(ids)
    with torch.no_grad():
        h_t, _ = teacher(ids)
    align = hidden_loss(h_s, h_t, ids != CONFIG["pad"])
    total = F.cross_entropy(logits, y) + CONFIG["hidden_weight"] * align
    opt.zero_grad()
    total.backward()
    opt.step()
    if step % 20 == 0:
        print(f"step {step} total {total.item():.3f} align {align.item():.3f}")
print("student acc", evaluate(student, test_ids, test_y))
