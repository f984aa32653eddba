"""Distil a small Whisper-style speech model: fewer encoder and decoder layers.

Keyword clips are spelled out by the decoder. The student starts from the teacher's first
layers and learns from transcripts (cross-entropy) and from the teacher's token
distributions (KL), both models being teacher-forced on the same text.
"""
import torch
from torch import nn
import torch.nn.functional as F

PAD, START, EOS, FIRST = 0, 1, 2, 3
MELS, FRAMES, WORDS, LETTERS, DIM = 8, 16, 10, 9, 32


class EncoderLayer(nn.Conv1d):
    def forward(self, h):
        return h + F.gelu(super().forward(h.transpose(1, 2))).transpose(1, 2)


class DecoderLayer(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(DIM)
        self.past = nn.Conv1d(DIM, DIM, 3)
        self.q, self.kv = nn.Linear(DIM, DIM), nn.Linear(DIM, 2 * DIM)

    def forward(self, h, memory):
        past = F.pad(self.norm(h).transpose(1, 2), (2, 0))
        h = h + torch.tanh(self.past(past)).transpose(1, 2)
        k, v = self.kv(memory).chunk(2, -1)
        return h + F.scaled_dot_product_attention(self.q(h), k, v)


class SpeechModel(nn.Module):
    def __init__(self, encoder_layers, decoder_layers):
        super().__init__()
        self.stem = nn.Conv1d(MELS, DIM, 3, stride=2, padding=1)
        self.frame_pos = nn.Parameter(0.1 * torch.randn(FRAMES // 2, DIM))
        self.encoder = nn.ModuleList(EncoderLayer(DIM, DIM, 5, padding=2) for _ in range(encoder_layers))
        self.embed = nn.Embedding(FIRST + LETTERS, DIM)
        self.decoder = nn.ModuleList(DecoderLayer() for _ in range(decoder_layers))
        self.ln = nn.LayerNorm(DIM)

    def encode(self, feats):
        h = self.stem(feats).transpose(1, 2) + self.frame_pos
        for layer in self.encoder:
            h = layer(h)
        return h

    def decode(self, ids, memory):
        h = self.embed(ids)
        for layer in self.decoder:
            h = layer(h, memory)
        return F.linear(self.ln(h), self.embed.weight)


class KeywordClips:
    def __init__(self):
        g = torch.Generator().manual_seed(40)
        self.sound = torch.randn(WORDS, MELS, FRAMES, generator=g)
        self.spelling = torch.full((WORDS, 6), -100)
        for row in self.spelling:
            n = int(torch.randint(3, 6, (1,), generator=g))
            row[:n] = torch.randint(FIRST, FIRST + LETTERS, (n,), generator=g)
            row[n] = EOS

    def batch(self, n, g, noise=0.9):
        word = torch.randint(0, WORDS, (n,), generator=g)
        return self.sound[word] + noise * torch.randn(n, MELS, FRAMES, generator=g), self.spelling[word]


def shift_right(labels):
    start = torch.full_like(labels[:, :1], START)
    return torch.cat([start, labels[:, :-1].clamp(min=PAD)], 1)


def student_from(teacher):
    student = SpeechModel(encoder_layers=1, decoder_layers=1)
    student.load_state_dict({k: teacher.state_dict()[k] for k in student.state_dict()})
    return student


def kl_on_tokens(student_logits, teacher_logits, labels, temperature=2.0):
    mask = labels != -100
    s, t = student_logits[mask] / temperature, teacher_logits[mask] / temperature
    return F.kl_div(s.log_softmax(-1), t.softmax(-1), reduction="batchmean") * temperature ** 2


@torch.no_grad()
def token_accuracy(model, clips):
    feats, labels = clips.batch(200, torch.Generator().manual_seed(77))
    guess = model.decode(shift_right(labels), model.encode(feats)).argmax(-1)
    mask = labels != -100
    return (guess[mask] == labels[mask]).float().mean().item()


def pretrain(model, clips, steps=110):
    g = torch.Generator().manual_seed(2)
    opt = torch.optim.Adam(model.parameters(), lr=4e-3)
    for _ in range(steps):
        feats, labels = clips.batch(16, g)
        logits = model.decode(shift_right(labels), model.encode(feats))
        loss = F.cross_entropy(logits.transpose(1, 2), labels, ignore_index=-100)
        opt.zero_grad()
        loss.backward()
        opt.step()
    return model.eval()


def main():
    torch.manual_seed(0)
    clips = KeywordClips()
    teacher = pretrain(SpeechModel(3, 2), clips)
    print(f"teacher token accuracy {token_accuracy(teacher, clips):.3f}")
    student = student_from(teacher)
    print(f"student token accuracy {token_accuracy(student, clips):.3f} before distillation")

    opt = torch.optim.AdamW(student.parameters(), lr=2e-3)
    g = torch.Generator().manual_seed(3)
    for step in range(1, 71):
        feats, labels = clips.batch(16, g)
        decoder_ids = shift_right(labels)
        s_memory = student.encode(feats)
        s_logits = student.decode(decoder_ids, s_memory)
        with torch.no_grad():
            t_logits = teacher.decode(decoder_ids, s_memory)
        ce = F.cross_entropy(s_logits.transpose(1, 2), labels, ignore_index=-100)
        kl = kl_on_tokens(s_logits, t_logits, labels)
        loss = 0.1 * ce + 0.9 * kl
        opt.zero_grad()
        loss.backward()
        opt.step()
        if step % 14 == 0:
            print(f"step {step} ce {ce.item():.3f} kl {kl.item():.3f}")
    print(f"student token accuracy {token_accuracy(student, clips):.3f}")


if __name__ == "__main__":
    main()
