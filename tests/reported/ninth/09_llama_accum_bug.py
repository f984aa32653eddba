import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

logging.set_verbosity_error()


@dataclass
class TrainArgs:
    updates: int = 50
    accum: int = 4
    micro: int = 6
    lr: float = 0.6
    clip: float = 1.0
    temperature: float = 1.0
    seed: int = 9
    log: list = field(default_factory=list)


VOCAB, PAD = 40, 0
torch.manual_seed(1)
RULE_A = torch.randperm(19) + 1          # symbols 1..19, short texts
RULE_B = torch.randperm(20) + 20         # symbols 20..39, long texts


def text(kind):
    if kind == 0:
        n, lo, rule = int(torch.randint(3, 6, (1,))), 1, RULE_A
    else:
        n, lo, rule = int(torch.randint(24, 30, (1,))), 20, RULE_B
    s = [int(torch.randint(0, len(rule), (1,))) + lo]
    for _ in range(n - 1):
        nxt = int(rule[s[-1] - lo])
        if torch.rand(1) < 0.15:
            nxt = int(torch.randint(0, len(rule), (1,))) + lo
        s.append(nxt)
    return torch.tensor(s)


def micro_batch(n):
    # texts of similar length go together
    kind = int(torch.rand(1) < 0.4)
    rows = [text(kind) for _ in range(n)]
    w = max(map(len, rows))
    ids = torch.stack([F.pad(r, (0, w - len(r)), value=PAD) for r in rows])
    return ids, (ids != PAD).long()


def make_model(hidden, layers):
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=VOCAB, hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=layers,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=64,
        pad_token_id=PAD, bos_token_id=None, eos_token_id=None))


def kd_sum(student_logits, teacher_logits, keep, tau):
    p = F.softmax(teacher_logits / tau, -1)
    q = F.log_softmax(student_logits / tau, -1)
    return (F.kl_div(q, p, reduction="none").sum(-1) * keep).sum() * tau ** 2


def train(student, teacher, args):
    opt = torch.optim.SGD(student.parameters(), lr=args.lr, momentum=0.8)
    sched = torch.optim.lr_scheduler.LambdaLR(
        opt, lambda u: min(1.0, (u + 1) / 5) * (0.2 + 0.8 * 0.5 * (1 + math.cos(math.pi * u / args.updates))))
    for upd in range(args.updates):
        window = [micro_batch(args.micro) for _ in range(args.accum)]
        total = 0.0
        opt.zero_grad()
        for ids, att in window:
            with torch.no_grad():
                t = teacher(input_ids=ids, attention_mask=att).logits[:, :-1]
            s = student(input_ids=ids, attention_mask=att).logits[:, :-1]
            loss = kd_sum(s, t, att[:, 1:], args.temperature) / att[:, 1:].sum() / args.accum
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(student.parameters(), args.clip)
        opt.step()
        sched.step()
        args.log.append(total)
        if upd % 10 == 9:
            print(f"update {upd + 1} kd {sum(args.log[-10:]) / 10:.4f}")


@torch.no_grad()
def next_acc(model, kind):
    st = torch.get_rng_state()
    torch.manual_seed(60 + kind)
    rows = [text(kind) for _ in range(40)]
    torch.set_rng_state(st)
    model.eval()
    hit = tot = 0
    for r in rows:
        pred = model(input_ids=r[None]).logits[0, :-1].argmax(-1)
        hit += (pred == r[1:]).sum().item()
        tot += len(r) - 1
    return round(hit / tot, 3)


def main():
    args = TrainArgs()
    torch.manual_seed(args.seed)
    teacher = make_model(64, 2)
    opt = torch.optim.AdamW(teacher.parameters(), lr=5e-3)
    for _ in range(70):
        ids, att = micro_batch(16)
        teacher(input_ids=ids, attention_mask=att, labels=ids.masked_fill(att == 0, -100)).loss.backward()
        opt.step()
        opt.zero_grad()
    teacher.eval()
    for p in teacher.parameters():
        p.requires_grad = False
    print("teacher short / long", next_acc(teacher, 0), next_acc(teacher, 1))
    torch.manual_seed(args.seed + 1)
    student = make_model(32, 1)
    student.train()
    train(student, teacher, args)
    print("student short / long", next_acc(student, 0), next_acc(student, 1))


if __name__ == "__main__":
    main()
