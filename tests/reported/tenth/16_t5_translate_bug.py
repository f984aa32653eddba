"""Word-level sequence distillation for a tiny T5 on a toy translation task with padding."""
import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset
from transformers import T5Config, T5ForConditionalGeneration

torch.manual_seed(25)
PAD, EOS, VOCAB = 0, 1, 22
DICTIONARY = torch.cat([torch.tensor([0, 1]), 2 + torch.randperm(VOCAB - 2)])


class Phrases(Dataset):
    """The target holds the translated words in sorted order."""

    def __init__(self, n, seed):
        g = torch.Generator().manual_seed(seed)
        self.rows = []
        for _ in range(n):
            length = int(torch.randint(2, 9, (1,), generator=g))
            src = torch.randint(2, VOCAB, (length,), generator=g)
            tgt = DICTIONARY[src].sort().values
            self.rows.append((torch.cat([src, torch.tensor([EOS])]), torch.cat([tgt, torch.tensor([EOS])])))

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        return self.rows[i]


def collate(rows):
    src = pad_sequence([s for s, _ in rows], batch_first=True, padding_value=PAD)
    tgt = pad_sequence([t for _, t in rows], batch_first=True, padding_value=-100)
    return {"input_ids": src, "attention_mask": (src != PAD).long(), "labels": tgt}


def tiny_t5(d_model, layers):
    return T5ForConditionalGeneration(T5Config(
        vocab_size=VOCAB, d_model=d_model, d_kv=16, d_ff=2 * d_model, num_layers=layers, num_heads=4,
        dropout_rate=0.0, pad_token_id=PAD, eos_token_id=EOS, decoder_start_token_id=PAD))


@torch.no_grad()
def token_accuracy(model, loader):
    model.eval()
    hit = n = 0
    for b in loader:
        keep = b["labels"] != -100
        hit += (model(**b).logits.argmax(-1) == b["labels"])[keep].sum().item()
        n += keep.sum().item()
    return hit / n


def kd_step(master, pupil, batch):
    keep = batch["labels"] != -100
    decoder_ids = pupil._shift_right(batch["labels"])
    with torch.no_grad():
        ref = master(input_ids=batch["input_ids"],
                     decoder_input_ids=decoder_ids).logits[keep]
    out = pupil(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"],
                decoder_input_ids=decoder_ids).logits[keep]
    soft = F.cross_entropy(out, ref.softmax(-1))
    hard = F.cross_entropy(out, batch["labels"][keep])
    return 0.8 * soft + 0.2 * hard


def main():
    train = DataLoader(Phrases(2000, 1), batch_size=48, shuffle=True, collate_fn=collate)
    dev = DataLoader(Phrases(300, 2), batch_size=100, collate_fn=collate)

    master = tiny_t5(64, 1)
    opt = torch.optim.AdamW(master.parameters(), lr=4e-3)
    for _ in range(5):
        master.train()
        for batch in train:
            opt.zero_grad()
            master(**batch).loss.backward()
            opt.step()
    master.eval().requires_grad_(False)
    print(f"master {token_accuracy(master, dev):.3f}")

    pupil = tiny_t5(32, 1)
    opt = torch.optim.AdamW(pupil.parameters(), lr=4e-3)
    for epoch in range(4):
        pupil.train()
        for batch in train:
            loss = kd_step(master, pupil, batch)
            opt.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(pupil.parameters(), 1.0)
            opt.step()
        print(f"epoch {epoch} loss {loss.item():.3f} pupil {token_accuracy(pupil, dev):.3f}")


if __name__ == "__main__":
    main()
