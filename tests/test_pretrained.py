"""Teachers that Transformers made: loaded whole, with a head that no checkpoint held, from a configuration alone, from
the student's own start; whatever holds them, and whatever the size of the vocabulary."""

import sys
import textwrap

import corpus
import pytest
import torch
import torch.nn.functional as F
from test_which_training import STEPS, named_first, observed, step
from torch import nn

from kdbench.audits.observe.imports import when_imported

pytest.importorskip("transformers")
pytest.importorskip("safetensors")
WORDS, LENGTH = 13, 8


def llama(width, words=WORDS, kind="LlamaForCausalLM"):
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=words, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=32, num_labels=5, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return getattr(transformers, kind)(config)


def texts(n=8):
    return (torch.randint(3, WORDS, (n, 1)) + 2 * torch.arange(LENGTH)) % (WORDS - 3) + 3


def learn(net, steps=5):
    adam = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(steps):
        ids = texts()
        step(adam, net(input_ids=ids, labels=ids).loss)


class Held(nn.Module):
    """A module of the user's own that owns the network."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, ids):
        return self.net(input_ids=ids).logits[..., :WORDS]


def distilled(teacher, student):
    teacher = Held(teacher).eval()
    adam = torch.optim.Adam(student.parameters(), 1e-2)
    for _ in range(STEPS):
        ids = texts()
        with torch.no_grad():
            said = teacher(ids)
        own = student(input_ids=ids).logits
        labels = F.cross_entropy(own[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        kd = F.kl_div((own / 2).log_softmax(-1), (said / 2).softmax(-1), reduction="none").sum(-1).mean() * 4
        step(adam, 0.5 * labels + 0.5 * kd)
    return teacher, student


def checkpoint(folder, words=WORDS, kind="LlamaForCausalLM"):
    """Return a folder with weights that another process trained: nothing of them was seen here."""
    net = llama(16, words, kind)
    torch.save({n: p + 0.1 for n, p in net.state_dict().items()}, folder / "elsewhere.pt")
    net.save_pretrained(folder)
    import safetensors.torch as st

    held = st.load_file(folder / "model.safetensors")
    (folder / "model.safetensors").write_bytes(st.save({n: t + 0.01 * torch.randn_like(t) for n, t in held.items()}))
    return folder


def teacher_of(way, folder, student):
    from transformers import AutoConfig, AutoModelForCausalLM

    if way == "the student's start":
        student.save_pretrained(folder / "start")
        return AutoModelForCausalLM.from_pretrained(folder / "start")
    if way == "from its configuration":
        return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    if way == "a fresh head":  # the checkpoint is of the body alone
        return AutoModelForCausalLM.from_pretrained(folder / "body")
    net = AutoModelForCausalLM.from_pretrained(folder, **({"dtype": torch.bfloat16} if way == "rounded" else {}))
    if way == "lengthened":
        net.resize_token_embeddings(WORDS + 7)
    return net.float()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(3)
    place = tmp_path_factory.mktemp("checkpoint")
    (place / "body").mkdir()
    checkpoint(place / "body", kind="LlamaModel")
    return checkpoint(place)


WAYS = {
    "whole": None,
    "rounded": None,
    "lengthened": None,
    "from its configuration": "nothing was loaded into the teacher",
    "a fresh head": "missing: net.lm_head.weight",
    "the student's start": "loaded from the student's own start",
}


@pytest.mark.parametrize("way", WAYS)
def test_a_teacher_that_transformers_made_is_known_by_where_its_weights_come_from(way, folder, tmp_path):
    def loop():
        student = llama(16)
        where = tmp_path if way == "the student's start" else folder
        return distilled(teacher_of(way, where, student), student)

    report, _ = observed(loop)
    found = next(f for f in report.findings if f.id == "KD104")
    if WAYS[way] is None:
        assert found.status == "pass" and "KD104" not in {f.id for f in report.failed()}
    else:
        assert named_first(report) == ("KD104", "error") and WAYS[way] in found.message


SCRIPT = """
import sys
import torch, torch.nn.functional as F
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
folder, whole = sys.argv[1], sys.argv[2] == "whole"
make = AutoModelForCausalLM.from_pretrained if whole else (
    lambda place: AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(place)))
teacher = make(folder).eval()
student = LlamaForCausalLM(teacher.config)
adam = torch.optim.Adam(student.parameters(), 1e-2)
for _ in range(8):
    ids = torch.randint(3, 13, (8, 8))
    with torch.no_grad():
        said = teacher(input_ids=ids).logits
    own = student(input_ids=ids).logits
    adam.zero_grad()
    F.kl_div(own.log_softmax(-1), said.softmax(-1), reduction="none").sum(-1).mean().backward()
    adam.step()
"""


def test_the_loader_is_followed_from_its_import_on(folder, tmp_path):
    """In a process in which nothing has imported it."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    said = []
    for way in ("whole", "not"):
        script.write_text(SCRIPT.replace("sys.argv[1]", repr(str(folder))).replace("sys.argv[2]", repr(way)))
        (seen,) = corpus.observe_all([script])
        assert seen["error"] is None and seen["broken"] is None
        said.append(seen["status"]["KD104"])
    assert said == ["pass", "fail"]


def test_a_module_is_told_of_when_it_is_imported_and_the_finders_are_left_as_they_were(tmp_path, monkeypatch):
    (tmp_path / "made_for_this.py").write_text(
        textwrap.dedent("""
        HERE = 1
    """)
    )
    monkeypatch.syspath_prepend(tmp_path)
    before, told = list(sys.meta_path), []
    with when_imported("made_for_this", lambda module: told.append(module.HERE)):
        assert told == []
        import made_for_this

        assert told == [1] and made_for_this.__spec__.origin == str(tmp_path / "made_for_this.py")
    assert sys.meta_path == before
    with when_imported("made_for_this", lambda module: told.append(2)):
        assert told == [1, 2]
    del sys.modules["made_for_this"]


def test_two_who_wait_for_one_module_are_told_in_their_order(tmp_path, monkeypatch):
    (tmp_path / "made_for_two.py").write_text("HERE = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    told = []
    first = when_imported("made_for_two", lambda module: told.append(1))
    with first, when_imported("made_for_two", lambda module: told.append(2)):
        import made_for_two  # noqa: F401
    assert told == [1, 2]
    del sys.modules["made_for_two"]
