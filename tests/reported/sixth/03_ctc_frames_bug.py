"""Streaming recogniser learns from an offline one: CTC plus frame posteriors."""
import argparse
import torch
import torch.nn as nn
import torch.nn.functional as F

ap = argparse.ArgumentParser()
ap.add_argument("--updates", type=int, default=70)
ap.add_argument("--kd-scale", type=float, default=1.0)
ap.add_argument("--bs", type=int, default=16)
args = ap.parse_args()
torch.manual_seed(90)

PHONES, FEAT, BLANK = 6, 12, 0
proto = torch.randn(PHONES + 1, FEAT) * 1.3
proto[BLANK] = -1.0


def utterances(n):
    feats, flens, targets, tlens = [], [], [], []
    for _ in range(n):
        k = int(torch.randint(2, 7, (1,)))
        seq = torch.randint(1, PHONES + 1, (k,))
        frames = []
        for p in seq:
            frames += [proto[p]] * int(torch.randint(2, 4, (1,))) + [proto[BLANK]]
        x = torch.stack(frames)
        feats.append(x + 0.6 * torch.randn_like(x))
        flens.append(len(x))
        targets.append(seq)
        tlens.append(k)
    return (nn.utils.rnn.pad_sequence(feats, batch_first=True), torch.tensor(flens),
            torch.cat(targets), torch.tensor(tlens))


class Acoustic(nn.Module):
    def __init__(self, hidden, both):
        super().__init__()
        self.rnn = nn.GRU(FEAT, hidden, batch_first=True, bidirectional=both)
        self.head = nn.Linear(hidden * (2 if both else 1), PHONES + 1)

    def forward(self, x, lens):
        packed = nn.utils.rnn.pack_padded_sequence(x, lens, batch_first=True, enforce_sorted=False)
        h, _ = nn.utils.rnn.pad_packed_sequence(self.rnn(packed)[0], batch_first=True)
        return self.head(h)


def ctc(logits, flens, tgt, tlens):
    return F.ctc_loss(logits.log_softmax(-1).transpose(0, 1), tgt, flens, tlens, blank=BLANK, zero_infinity=True)


def frame_kd(student_logits, teacher_logits, lens):
    kl = F.kl_div(student_logits.log_softmax(-1), teacher_logits.softmax(-1), reduction="none").sum(-1)
    return kl.mean()


@torch.no_grad()
def exact_match(model, data):
    x, fl, tgt, tl = data
    best = model(x, fl).argmax(-1)
    refs, hit = tgt.split(tl.tolist()), 0
    for row, n, ref in zip(best, fl, refs):
        path = torch.unique_consecutive(row[:n])
        hit += path[path != BLANK].tolist() == ref.tolist()
    return hit / len(fl)


test_set = utterances(200)
offline = Acoustic(40, True)
opt = torch.optim.Adam(offline.parameters(), lr=1e-2)
for _ in range(110):
    x, fl, tgt, tl = utterances(args.bs)
    opt.zero_grad()
    ctc(offline(x, fl), fl, tgt, tl).backward()
    opt.step()
offline.eval().requires_grad_(False)
print("offline exact", exact_match(offline, test_set))

streaming = Acoustic(28, False)
opt = torch.optim.Adam(streaming.parameters(), lr=1e-2)
for step in range(args.updates):
    x, fl, tgt, tl = utterances(args.bs)
    logits = streaming(x, fl)
    with torch.no_grad():
        guide = offline(x, fl)
    kd = frame_kd(logits, guide, fl)
    loss = ctc(logits, fl, tgt, tl) + args.kd_scale * kd
    opt.zero_grad()
    loss.backward()
    opt.step()
    if step % 10 == 9:
        print(f"{step + 1:3d} loss {loss.item():.3f} kd {kd.item():.3f}")
print("streaming exact", exact_match(streaming, test_set))
