"""Distil a phone recogniser (CTC) into a student with a coarser frame rate.

The teacher emits one frame every 10 ms, the student one every 20 ms. Losses are the CTC
loss on the phone strings and a frame-level KL to the teacher's posteriors.
"""
import torch
import torch.nn as nn
import torch.nn.functional as F

BLANK, PHONES, FEATS = 0, 7, 10


class Recogniser(nn.Module):
    def __init__(self, width, stride):
        super().__init__()
        self.stride = stride
        self.net = nn.Sequential(
            nn.Conv1d(FEATS, width, 5, padding=2), nn.ReLU(),
            nn.Conv1d(width, width, 5, stride=stride, padding=2), nn.ReLU(),
            nn.Conv1d(width, PHONES + 1, 1))

    def forward(self, feats):
        """(batch, time, feats) -> (batch, time / stride, phones + blank)"""
        return self.net(feats.transpose(1, 2)).transpose(1, 2)


def utterances(n, seed, phones_per_utt=5):
    g = torch.Generator().manual_seed(seed)
    voice = torch.randn(PHONES, FEATS, generator=torch.Generator().manual_seed(8))
    feats, lengths, strings = [], [], []
    for _ in range(n):
        k = int(torch.randint(2, phones_per_utt + 1, (1,), generator=g))
        phones = torch.randint(0, PHONES, (k,), generator=g)
        spans = torch.randint(4, 9, (k,), generator=g)
        frames = voice[phones].repeat_interleave(spans, 0)
        feats.append(frames + 0.9 * torch.randn(frames.shape, generator=g))
        lengths.append(len(frames))
        strings.append(phones + 1)
    return nn.utils.rnn.pad_sequence(feats, batch_first=True), torch.tensor(lengths), strings


def ctc(logits, lengths, strings):
    return F.ctc_loss(logits.log_softmax(-1).transpose(0, 1), torch.cat(strings), lengths,
                      torch.tensor([len(s) for s in strings]), blank=BLANK, zero_infinity=True)


def match_frames(t_logits, n_frames, stride):
    """Teacher posteriors at the student's frame rate."""
    return t_logits.softmax(-1)[:, :n_frames]


def frame_kl(s_logits, t_prob, lengths):
    mask = torch.arange(s_logits.size(1))[None] < lengths[:, None]
    kl = F.kl_div(s_logits.log_softmax(-1), t_prob, reduction="none").sum(-1)
    return (kl * mask).sum() / mask.sum()


def edit_distance(a, b):
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        diag, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            diag, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diag + (x != y))
    return row[-1]


@torch.no_grad()
def phone_error_rate(model, data):
    feats, lengths, strings = data
    best = model(feats).argmax(-1)
    errors = total = 0
    for path, n, ref in zip(best, (lengths + model.stride - 1) // model.stride, strings):
        hyp = torch.unique_consecutive(path[:n])
        errors += edit_distance(hyp[hyp != BLANK].tolist(), ref.tolist())
        total += len(ref)
    return errors / total


def batches(data, steps, size, seed):
    g = torch.Generator().manual_seed(seed)
    feats, lengths, strings = data
    for _ in range(steps):
        pick = torch.randint(0, len(lengths), (size,), generator=g)
        yield feats[pick], lengths[pick], [strings[i] for i in pick.tolist()]


def main():
    torch.manual_seed(0)
    train, test = utterances(120, 1), utterances(60, 2)

    teacher = Recogniser(32, stride=1)
    opt = torch.optim.Adam(teacher.parameters(), lr=6e-3)
    for feats, lengths, strings in batches(train, 120, 24, seed=3):
        loss = ctc(teacher(feats), lengths, strings)
        opt.zero_grad()
        loss.backward()
        opt.step()
    teacher.eval()
    print(f"teacher: ctc {loss.item():.3f}, phone error rate {phone_error_rate(teacher, test):.3f}")

    student = Recogniser(14, stride=2)
    opt = torch.optim.Adam(student.parameters(), lr=6e-3)
    for step, (feats, lengths, strings) in enumerate(batches(train, 120, 24, seed=4), 1):
        s_logits = student(feats)
        s_lengths = (lengths + 1) // student.stride
        with torch.no_grad():
            t_prob = match_frames(teacher(feats), s_logits.size(1), student.stride)
        kd = frame_kl(s_logits, t_prob, s_lengths)
        hard = ctc(s_logits, s_lengths, strings)
        loss = 0.5 * hard + 1.0 * kd
        opt.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(student.parameters(), 5.0)
        opt.step()
        if step % 30 == 0:
            print(f"step {step:3d} ctc {hard.item():.3f} kd {kd.item():.3f} "
                  f"test phone error rate {phone_error_rate(student, test):.3f}")


if __name__ == "__main__":
    main()
