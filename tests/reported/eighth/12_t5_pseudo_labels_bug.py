"""Sequence-level + token-level distillation for a toy T5: the teacher writes the targets, the student copies."""
import torch
import torch.nn.functional as F
from transformers import T5Config, T5ForConditionalGeneration

VOCAB, PAD, EOS = 48, 0, 1


def small_t5(d_model, layers):
    return T5ForConditionalGeneration(T5Config(
        vocab_size=VOCAB, d_model=d_model, d_kv=d_model // 4, d_ff=2 * d_model, num_layers=layers, num_heads=4,
        dropout_rate=0.05, pad_token_id=PAD, eos_token_id=EOS, decoder_start_token_id=PAD))


def sources(n, gen):
    lengths = torch.randint(3, 7, (n, 1), generator=gen)
    ids = torch.randint(2, VOCAB, (n, 6), generator=gen)
    real = torch.arange(6) < lengths
    ids = torch.where(real, ids, torch.tensor(PAD))
    eos = torch.full((n, 1), PAD)
    ids = torch.cat([ids, eos], dim=1).scatter(1, lengths, EOS)
    return ids, (ids != PAD).long()


def gold_targets(src):
    """Each content token t is 'translated' to a fixed other token; EOS and padding stay."""
    out = torch.where(src > 1, (src * 5) % (VOCAB - 2) + 2, src)
    return out.masked_fill(src == PAD, -100)


@torch.no_grad()
def pseudo_labels(teacher, src, attn):
    seq = teacher.generate(input_ids=src, attention_mask=attn, max_new_tokens=9, num_beams=1, do_sample=False)
    labels = seq.clone()
    return labels.masked_fill(labels == PAD, -100)


class Seq2SeqKD:
    def __init__(self, teacher, student, lr, tau=1.0, kd_weight=0.5):
        self.teacher, self.student = teacher, student
        self.tau, self.kd_weight = tau, kd_weight
        self.opt = torch.optim.AdamW(student.parameters(), lr=lr)

    def step(self, src, attn, labels):
        feed = dict(input_ids=src, attention_mask=attn, labels=labels)
        with torch.no_grad():
            t_logits = self.teacher(**feed).logits
        out = self.student(**feed)
        keep = labels != -100
        log_s = F.log_softmax(out.logits[keep] / self.tau, -1)
        log_t = F.log_softmax(t_logits[keep] / self.tau, -1)
        kd = F.kl_div(log_s, log_t, reduction="batchmean", log_target=True) * self.tau ** 2
        loss = (1 - self.kd_weight) * out.loss + self.kd_weight * kd
        self.opt.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.student.parameters(), 1.0)
        self.opt.step()
        return loss.item()


@torch.no_grad()
def exact_tokens(teacher, student, gen):
    student.eval()
    src, attn = sources(64, gen)
    kw = dict(input_ids=src, attention_mask=attn, max_new_tokens=8, min_new_tokens=8, do_sample=False)
    a, b = teacher.generate(**kw), student.generate(**kw)
    return (a[:, 1:4] == b[:, 1:4]).float().mean().item()


def main():
    torch.manual_seed(33)
    gen = torch.Generator().manual_seed(33)
    teacher = small_t5(48, 2)
    opt = torch.optim.AdamW(teacher.parameters(), lr=4e-3)
    teacher.train()
    for _ in range(100):
        src, attn = sources(32, gen)
        loss = teacher(input_ids=src, attention_mask=attn, labels=gold_targets(src)).loss
        opt.zero_grad()
        loss.backward()
        opt.step()
    print(f"teacher loss {loss.item():.3f}")
    teacher.eval().requires_grad_(False)

    student = small_t5(32, 1)
    student.train()
    kd = Seq2SeqKD(teacher, student, lr=8e-3)
    src, attn = sources(192, gen)
    labels = pseudo_labels(teacher, src, attn)
    print(f"pseudo-labelled {len(src)} sources, mean target length {(labels != -100).sum(1).float().mean():.2f}")
    for epoch in range(5):
        for pick in torch.randperm(len(src)).split(24):
            value = kd.step(src[pick], attn[pick], labels[pick])
        print(f"epoch {epoch} {value:.4f}")
    print(f"agreement on the first generated tokens {exact_tokens(teacher, student, gen):.3f}")
    print(f"final loss {value:.4f}")


main()
