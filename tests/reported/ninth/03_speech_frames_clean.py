"""Frame-level acoustic model: bidirectional teacher -> light convolutional student, variable-length utterances."""
from dataclasses import dataclass

import torch
import torch.nn as nn
from torch.utils.data import DataLoader, Dataset


@dataclass
class Cfg:
    n_feat: int = 12
    n_phone: int = 8
    sub: int = 4
    max_seg: int = 14
    batch: int = 16
    tea_epochs: int = 6
    stu_epochs: int = 5
    temp: float = 1.5
    seed: int = 21


cfg = Cfg()
torch.manual_seed(cfg.seed)
PROTO = torch.randn(cfg.n_phone, cfg.n_feat)


class Utts(Dataset):
    def __init__(self, n, seed):
        g = torch.Generator().manual_seed(seed)
        self.items = []
        for _ in range(n):
            k = int(torch.randint(2, cfg.max_seg, (1,), generator=g))
            ph = torch.randint(0, cfg.n_phone, (k,), generator=g)
            x = PROTO[ph].repeat_interleave(cfg.sub, 0)
            x = x + 1.4 * torch.randn(x.shape, generator=g)
            self.items.append((x, ph))

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        return self.items[i]


def collate(items):
    lens = torch.tensor([len(x) for x, _ in items])
    ph_lens = torch.tensor([len(p) for _, p in items])
    feats = nn.utils.rnn.pad_sequence([x for x, _ in items], batch_first=True)
    phones = nn.utils.rnn.pad_sequence([p for _, p in items], batch_first=True, padding_value=-1)
    return {"feats": feats, "lens": lens, "phones": phones, "ph_lens": ph_lens}


class Teacher(nn.Module):
    def __init__(self):
        super().__init__()
        self.front = nn.Conv1d(cfg.n_feat, 48, cfg.sub, stride=cfg.sub)
        self.rnn = nn.GRU(48, 32, batch_first=True, bidirectional=True)
        self.out = nn.Linear(64, cfg.n_phone)

    def forward(self, x, lens):
        h = self.front(x.transpose(1, 2)).relu().transpose(1, 2)
        h, _ = self.rnn(h)
        return self.out(h), lens // cfg.sub


class Student(nn.Module):
    def __init__(self):
        super().__init__()
        self.front = nn.Conv1d(cfg.n_feat, 20, cfg.sub, stride=cfg.sub)
        self.mid = nn.Conv1d(20, 20, 3, padding=1)
        self.out = nn.Linear(20, cfg.n_phone)

    def forward(self, x, lens):
        h = self.front(x.transpose(1, 2)).relu()
        h = self.mid(h).relu().transpose(1, 2)
        return self.out(h), lens // cfg.sub


def frame_mask(lens, total):
    return torch.arange(total)[None] < lens[:, None]


class Distiller:
    def __init__(self, teacher, student):
        self.teacher, self.student = teacher.eval(), student
        self.opt = torch.optim.Adam(student.parameters(), lr=6e-3)
        self.log = []

    def train_step(self, b):
        self.student.train()
        with torch.no_grad():
            t_out, _ = self.teacher(b["feats"], b["lens"])
        s_out, out_lens = self.student(b["feats"], b["lens"])
        mask = frame_mask(out_lens, s_out.shape[1])
        p = torch.softmax(t_out / cfg.temp, -1)
        logq = torch.log_softmax(s_out / cfg.temp, -1)
        kl = (p * (p.clamp(min=1e-8).log() - logq)).sum(-1)
        loss = (kl * mask).sum() / mask.sum() * cfg.temp ** 2
        self.opt.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.student.parameters(), 5.0)
        self.opt.step()
        self.log.append(loss.item())


@torch.no_grad()
def frame_acc(net, loader):
    net.eval()
    hit = tot = 0
    for b in loader:
        pred = net(b["feats"], b["lens"])[0].argmax(-1)
        ok = b["phones"] >= 0
        hit += (pred[ok] == b["phones"][ok]).sum().item()
        tot += ok.sum().item()
    return hit / tot


train = DataLoader(Utts(256, 1), batch_size=cfg.batch, shuffle=True, collate_fn=collate)
test = DataLoader(Utts(128, 2), batch_size=32, collate_fn=collate)

tea = Teacher()
opt = torch.optim.Adam(tea.parameters(), lr=6e-3)
for _ in range(cfg.tea_epochs):
    for b in train:
        out, _ = tea(b["feats"], b["lens"])
        loss = nn.functional.cross_entropy(out.flatten(0, 1), b["phones"].flatten(), ignore_index=-1)
        opt.zero_grad()
        loss.backward()
        opt.step()
print(f"teacher frame acc {frame_acc(tea, test):.3f}")

torch.manual_seed(cfg.seed + 7)
d = Distiller(tea, Student())
for ep in range(cfg.stu_epochs):
    for b in train:
        d.train_step(b)
    print(f"epoch {ep} kd loss {sum(d.log[-16:]) / 16:.4f}")
print(f"student frame acc {frame_acc(d.student, test):.3f}")
