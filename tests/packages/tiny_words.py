"""What the scripts for language share: a tokenizer of single words, sentences, and small language models."""

import random

import tokenizers
import torch
import transformers

WORDS = [f"w{i}" for i in range(28)]
TEMPLATE = (
    "{% for m in messages %}{{ '<q> ' if m['role'] == 'user' else '<a> ' }}{{ m['content'] }}"
    "{% if m['role'] == 'assistant' %} </s>{% endif %} {% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
)


def tokenizer():
    vocabulary = {w: i for i, w in enumerate(["<pad>", "</s>", "<q>", "<a>", *WORDS])}
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<pad>"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    made = transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>")
    made.chat_template = TEMPLATE
    return made


def sentences(count, seed=0):
    """Each word is the one before it plus a step of the sentence's own, so that there is something to learn."""
    draw = random.Random(seed)
    starts = [(draw.randrange(28), draw.randrange(1, 4), draw.randrange(4, 9)) for _ in range(count)]
    return [" ".join(WORDS[(a + i * d) % 28] for i in range(n)) for a, d, n in starts]


def llama(width, seed=0):
    torch.manual_seed(seed)
    sizes = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": 1}
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(vocab_size=32, num_key_value_heads=2, max_position_embeddings=64, **sizes, **ends)
    )


def learn(model, words, steps=60):
    """Train a teacher on the sentences."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for step in range(steps):
        batch = words(sentences(16, seed=100 + step), padding=True, return_tensors="pt")
        labels = batch.input_ids.masked_fill(batch.attention_mask == 0, -100)
        optimizer.zero_grad()
        model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=labels).loss.backward()
        optimizer.step()
    return model.eval()


def embedder(width, folder, seed=0):
    """Return a SentenceTransformer over a BERT of one layer, by way of a folder, since the package reads from one."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    torch.manual_seed(seed)
    sizes = {"hidden_size": width, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 2 * width}
    transformers.BertModel(transformers.BertConfig(vocab_size=32, max_position_embeddings=64, **sizes)).save_pretrained(
        folder
    )
    tokenizer().save_pretrained(folder)
    body = Transformer(folder)
    return SentenceTransformer(modules=[body, Pooling(width)], device="cpu")
