"""Speech-like CTC student distilled frame by frame from a wider CTC teacher (synthetic filterbanks)."""
import os
import tempfile

import torch
import torch.nn as nn
import torch.nn.functional as F

N_SYMBOLS, BLANK, N_MEL = 12, 0, 16


class CTCEncoder(nn.Module):
    def __init__(self, width, layers, dropout=0.1):
        super().__init__()
        self.subsample = nn.Conv1d(N_MEL, width, kernel_size=3, stride=2, padding=1)
        self.rnn = nn.GRU(width, width, layers, batch_first=True, dropout=dropout if layers > 1 else 0.0)
        self.drop = nn.Dropout(dropout)
        self.out = nn.Linear(width, N_SYMBOLS + 1)

    def forward(self, feats, lengths):
        x = F.gelu(self.subsample(feats.transpose(1, 2))).transpose(1, 2)
        x, _ = self.rnn(x)
        return self.out(self.drop(x)), (lengths + 1) // 2


class FakeSpeech:
    """Each symbol sounds for 6 frames with a fixed spectrum plus noise, 2 silent frames in between."""

    def __init__(self, seed):
        self.gen = torch.Generator().manual_seed(seed)
        self.spectra = torch.randn(N_SYMBOLS + 1, N_MEL, generator=torch.Generator().manual_seed(0))
        self.spectra[BLANK] = 0.0

    def batch(self, n):
        texts, clips = [], []
        for _ in range(n):
            size = int(torch.randint(2, 6, (1,), generator=self.gen))
            text = torch.randint(1, N_SYMBOLS + 1, (size,), generator=self.gen)
            frames = torch.cat([torch.cat([self.spectra[s].expand(6, -1), self.spectra[:1].expand(2, -1)]) for s in text])
            clips.append(frames + 0.4 * torch.randn(frames.shape, generator=self.gen))
            texts.append(text)
        lengths = torch.tensor([len(c) for c in clips])
        text_lengths = torch.tensor([len(t) for t in texts])
        feats = nn.utils.rnn.pad_sequence(clips, batch_first=True)
        return feats, lengths, torch.cat(texts), text_lengths


def ctc(logits, out_lengths, texts, text_lengths):
    return F.ctc_loss(logits.log_softmax(-1).transpose(0, 1), texts, out_lengths, text_lengths, blank=BLANK,
                      zero_infinity=True)


def frame_kd(s_logits, t_logits, out_lengths, tau):
    s = s_logits.transpose(0, 1)
    t = t_logits.transpose(0, 1)
    log_p = F.log_softmax(s / tau, dim=-1)
    q = F.softmax(t / tau, dim=1)
    valid = torch.arange(s.size(0)).unsqueeze(1) < out_lengths
    kl = F.kl_div(log_p, q, reduction="none").sum(-1)
    return (kl * valid).sum() / valid.sum() * tau ** 2


def token_error(model, data):
    model.eval()
    with torch.no_grad():
        feats, lengths, texts, text_lengths = data.batch(48)
        logits, n = model(feats, lengths)
    wrong, offset = 0, 0
    for row, keep, size in zip(logits.argmax(-1), n.tolist(), text_lengths.tolist()):
        hyp = [int(x) for x in torch.unique_consecutive(row[:keep]) if x != BLANK]
        ref = texts[offset:offset + size].tolist()
        offset += size
        wrong += hyp != ref
    return wrong / len(text_lengths)


def main():
    torch.manual_seed(1)
    teacher, speech = CTCEncoder(64, 2), FakeSpeech(1)
    opt = torch.optim.Adam(teacher.parameters(), lr=5e-3)
    teacher.train()
    for _ in range(120):
        feats, lengths, texts, text_lengths = speech.batch(24)
        loss = ctc(*teacher(feats, lengths), texts, text_lengths)
        opt.zero_grad()
        loss.backward()
        opt.step()
    print(f"teacher ctc {loss.item():.3f}, sequence error {token_error(teacher, FakeSpeech(50)):.3f}")
    teacher.eval().requires_grad_(False)

    student = CTCEncoder(24, 1)
    opt = torch.optim.Adam(student.parameters(), lr=6e-3)
    student.train()
    for step in range(100):
        feats, lengths, texts, text_lengths = speech.batch(16)
        with torch.no_grad():
            t_logits, _ = teacher(feats, lengths)
        s_logits, n = student(feats, lengths)
        loss = 0.3 * ctc(s_logits, n, texts, text_lengths) + 0.7 * frame_kd(s_logits, t_logits, n, tau=2.0)
        opt.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(student.parameters(), 5.0)
        opt.step()
        if step % 25 == 0:
            print(f"step {step} loss {loss.item():.4f}")
    print(f"student sequence error {token_error(student, FakeSpeech(50)):.3f}")
    with tempfile.TemporaryDirectory() as d:
        torch.save(student.state_dict(), os.path.join(d, "student.pt"))
    print(f"final loss {loss.item():.4f}")


if __name__ == "__main__":
    main()
