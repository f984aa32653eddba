"""Word-level distillation between two tiny Llama models on a second-order token source."""
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)


@dataclass
class Args:
    vocab: int = 40
    length: int = 24
    batch: int = 32
    teacher_steps: int = 200
    steps: int = 120
    tau: float = 2.0
    soft_weight: float = 0.7
    lr: float = 4e-3


args = Args()


class Source:
    def __init__(self, vocab, seed=5):
        g = torch.Generator().manual_seed(seed)
        self.vocab = vocab
        self.next = torch.stack([torch.randperm(vocab, generator=g)[:4] for _ in range(vocab)])
        self.p = torch.tensor([0.6, 0.2, 0.15, 0.05])

    def draw(self, n, length, g):
        seq = torch.randint(0, self.vocab, (n, 1), generator=g)
        while seq.size(1) < length:
            choice = torch.multinomial(self.p.expand(n, 4), 1, generator=g)
            seq = torch.cat([seq, self.next[seq[:, -1]].gather(1, choice)], 1)
        return seq


def tiny_llama(hidden, layers):
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=args.vocab, hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64))


def distillation_loss(student_logits, teacher_logits, ids):
    shift_student = student_logits[:, :-1].reshape(-1, args.vocab)
    shift_teacher = teacher_logits[:, 1:].reshape(-1, args.vocab)
    labels = ids[:, 1:].reshape(-1)
    soft = F.kl_div(F.log_softmax(shift_student / args.tau, -1), F.log_softmax(shift_teacher / args.tau, -1),
                    log_target=True, reduction="batchmean") * args.tau ** 2
    hard = F.cross_entropy(shift_student, labels)
    return args.soft_weight * soft + (1 - args.soft_weight) * hard, soft, hard


@torch.no_grad()
def held_out(model, source):
    model.eval()
    ids = source.draw(128, args.length, torch.Generator().manual_seed(999))
    return model(input_ids=ids, labels=ids).loss.item()


def main():
    source = Source(args.vocab)
    gen = torch.Generator().manual_seed(1)
    teacher, student = tiny_llama(64, 2), tiny_llama(32, 1)

    opt = torch.optim.AdamW(teacher.parameters(), lr=args.lr)
    teacher.train()
    for _ in range(args.teacher_steps):
        ids = source.draw(args.batch, args.length, gen)
        opt.zero_grad()
        teacher(input_ids=ids, labels=ids).loss.backward()
        opt.step()
    print(f"teacher held-out nll {held_out(teacher, source):.3f}")

    teacher.eval()
    for p in teacher.parameters():
        p.requires_grad_(False)

    opt = torch.optim.AdamW(student.parameters(), lr=args.lr)
    student.train()
    for step in range(args.steps):
        ids = source.draw(args.batch, args.length, gen)
        with torch.no_grad():
            teacher_logits = teacher(input_ids=ids).logits
        loss, soft, hard = distillation_loss(student(input_ids=ids).logits, teacher_logits, ids)
        opt.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        opt.step()
        if step % 30 == 0:
            print(f"step {step} soft {soft.item():.3f} hard {hard.item():.3f}")
    print(f"student held-out nll {held_out(student, source):.3f}")


if __name__ == "__main__":
    main()
