import tempfile

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch.utils.data import DataLoader, TensorDataset
from transformers import Qwen2Config, Qwen2ForCausalLM, get_cosine_schedule_with_warmup

CFG = {
    "seed": 31, "vocab": 96, "ctx": 16, "rows": 768, "micro_batch": 8, "accumulate": 4,
    "epochs": 2, "lr": 0.25, "momentum": 0.9, "temperature": 2.0, "alpha": 0.8, "clip": 1.0,
}


def build(width, layers):
    return Qwen2ForCausalLM(Qwen2Config(
        vocab_size=CFG["vocab"], hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=True))


def corpus(seed, rows):
    g = torch.Generator().manual_seed(seed)
    rule = torch.randperm(CFG["vocab"], generator=torch.Generator().manual_seed(99))
    x = torch.randint(0, CFG["vocab"], (rows, 1), generator=g)
    while x.size(1) < CFG["ctx"]:
        nxt = rule[x[:, -1]]
        slip = torch.rand(rows, generator=g) < 0.15
        x = torch.cat([x, torch.where(slip, (nxt + 1) % CFG["vocab"], nxt)[:, None]], dim=1)
    return x


def pretrain(data):
    model = build(64, 2)
    optim = torch.optim.AdamW(model.parameters(), lr=4e-3)
    for i in range(90):
        rows = data[torch.randint(len(data), (24,))]
        loss = model(input_ids=rows, labels=rows).loss
        optim.zero_grad()
        loss.backward()
        optim.step()
    print(f"teacher nll {loss.item():.3f}")
    return model.eval().requires_grad_(False)


def blended_loss(student_logits, teacher_logits, ids):
    tau, alpha = CFG["temperature"], CFG["alpha"]
    s, t = student_logits[:, :-1].flatten(0, 1).float(), teacher_logits[:, :-1].flatten(0, 1).float()
    soft = F.kl_div(F.log_softmax(s / tau, -1), F.softmax(t / tau, -1), reduction="batchmean") * tau ** 2
    hard = F.cross_entropy(s, ids[:, 1:].flatten())
    return alpha * soft + (1 - alpha) * hard


def main():
    set_seed(CFG["seed"])
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=CFG["accumulate"])
    data = corpus(1, CFG["rows"])
    teacher = pretrain(data)
    student = build(32, 2)
    loader = DataLoader(TensorDataset(data), batch_size=CFG["micro_batch"], shuffle=True, drop_last=True)
    updates = CFG["epochs"] * len(loader) // CFG["accumulate"]
    optim = torch.optim.SGD(student.parameters(), lr=CFG["lr"], momentum=CFG["momentum"])
    sched = get_cosine_schedule_with_warmup(optim, 4, updates)
    student, teacher, optim, loader, sched = accelerator.prepare(student, teacher, optim, loader, sched)

    done = 0
    for epoch in range(CFG["epochs"]):
        student.train()
        teacher.eval()
        for (ids,) in loader:
            with accelerator.accumulate(student):
                with torch.no_grad():
                    t_logits = teacher(input_ids=ids).logits
                loss = blended_loss(student(input_ids=ids).logits, t_logits, ids)
                accelerator.backward(loss / accelerator.gradient_accumulation_steps)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(student.parameters(), CFG["clip"])
                    done += 1
                optim.step()
                sched.step()
                optim.zero_grad()
        accelerator.print(f"epoch {epoch} updates {done}/{updates} loss {loss.item():.4f}")

    with tempfile.TemporaryDirectory() as out:
        accelerator.unwrap_model(student).save_pretrained(out)
    student.eval()
    held_out = corpus(2, 128)
    with torch.no_grad():
        final = blended_loss(student(input_ids=held_out).logits, teacher(input_ids=held_out).logits, held_out)
    accelerator.print(f"final loss (held-out) {final.item():.4f}")


if __name__ == "__main__":
    main()
