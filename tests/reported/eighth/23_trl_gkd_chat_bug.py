"""On-policy distillation with TRL's GKDTrainer on a toy chat corpus."""
import random
import tempfile

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl.experimental.gkd import GKDConfig, GKDTrainer

WORDS = [f"w{i}" for i in range(40)]
TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }} <end> {% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)


def toy_tokenizer():
    vocab = ["<pad>", "<unk>", "<end>", "<user>", "<assistant>"] + WORDS
    tok = Tokenizer(models.WordLevel({w: i for i, w in enumerate(vocab)}, unk_token="<unk>"))
    tok.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tok, pad_token="<pad>", unk_token="<unk>", eos_token="<end>",
                                   padding_side="left")
    fast.chat_template = TEMPLATE
    return fast


def chats(n, rng):
    rows = []
    for _ in range(n):
        picks = [rng.randrange(40) for _ in range(rng.randrange(2, 5))]
        question = " ".join(WORDS[i] for i in picks)
        answer = " ".join(WORDS[(i + 7) % 40] for i in picks)
        rows.append([{"role": "user", "content": question}, {"role": "assistant", "content": answer}])
    return rows


def model_config(tok, width):
    return LlamaConfig(vocab_size=len(tok), hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2,
                       num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
                       pad_token_id=tok.pad_token_id, eos_token_id=tok.eos_token_id, bos_token_id=None)


def sft_teacher(tok, rng, folder):
    model = LlamaForCausalLM(model_config(tok, 64))
    opt = torch.optim.AdamW(model.parameters(), lr=4e-3)
    for _ in range(100):
        texts = [tok.apply_chat_template(c, tokenize=False) for c in chats(24, rng)]
        enc = tok(texts, padding=True, padding_side="right", return_tensors="pt", return_token_type_ids=False)
        labels = enc["input_ids"].masked_fill(enc["attention_mask"] == 0, -100)
        loss = model(**enc, labels=labels).loss
        opt.zero_grad()
        loss.backward()
        opt.step()
    print(f"teacher sft loss {loss.item():.3f}")
    model.save_pretrained(folder)


def main():
    torch.manual_seed(23)
    rng = random.Random(23)
    tok = toy_tokenizer()
    with tempfile.TemporaryDirectory() as tmp:
        sft_teacher(tok, rng, f"{tmp}/teacher")
        teacher = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(f"{tmp}/teacher"))
        student = LlamaForCausalLM(model_config(tok, 32))
        data = Dataset.from_dict({"messages": chats(256, rng)})
        args = GKDConfig(
            output_dir=f"{tmp}/gkd", max_steps=36, per_device_train_batch_size=8, learning_rate=4e-3, beta=0.5,
            lmbda=0.25, temperature=1.0, max_new_tokens=6, max_length=32, bf16=False, gradient_checkpointing=False,
            use_cpu=True, logging_steps=12, save_strategy="no", report_to=[], disable_tqdm=True, seed=23,
            dataloader_pin_memory=False)
        trainer = GKDTrainer(model=student, teacher_model=teacher, args=args, train_dataset=data,
                             processing_class=tok)
        result = trainer.train()
        trainer.save_model(f"{tmp}/student")
    print(f"final loss {result.training_loss:.4f}")


if __name__ == "__main__":
    main()
