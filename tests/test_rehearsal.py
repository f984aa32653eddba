"""A mistake in a method or network of the user's is refused before a study trains its teacher."""

import pytest
from test_cli import kdbench
from test_own_methods import FILES, NET, as_before, own

from kdbench.harness import study

__all__ = ["as_before", "own"]

METHOD = FILES["logit_mse.py"]
TERM = METHOD[METHOD.index("return {") :].strip()
RUN = ["run", "study.toml", "--method-file", "mine.py", "--model-file", "plain.py", "--no-controls"]


def wrong(own, returned, **more):
    """Run a study whose method returns this; return the exit code, what was said, and whether anything was written."""
    text = METHOD.replace(TERM, f"return {returned}")
    for old, new in more.items():
        assert old in text
        text = text.replace(old, new)
    (own / "mine.py").write_text(text)
    code, out, err = kdbench(*RUN)
    return code, " ".join(err.split()), out or (own / "runs").exists()


def test_the_method_of_the_page_is_the_specimen_that_passes():
    assert TERM.startswith("return {") and "\n" not in TERM


@pytest.mark.parametrize(
    ("returned", "says"),
    [
        (
            "F.mse_loss(student.logits, teacher.logits)",
            'method logit_mse returned a Tensor; return its terms by name: {"kd": ...}',
        ),
        (
            '{"kd": F.mse_loss(student.logits, teacher.logits).item()}',
            "method logit_mse returned a float as term kd; return a tensor of one number",
        ),
        (
            '{"kd": F.mse_loss(student.logits, teacher.logits, reduction="none")}',
            "method logit_mse returned the term kd of shape (2, 10); reduce it to one number, as with .mean()",
        ),
        (
            '{"kd": F.mse_loss(student.logits, teacher.logits), "extra": student.logits.mean()}',
            "returned the terms kd, extra, and its settings weigh kd; each term x needs the setting x_weight",
        ),
        ('{"kd": F.cross_entropy(student.logits, batch.labels)}', "add it to needs= (mine.py, line "),
        (
            '{"kd": student.features[7].mean()}',
            "training plain with method logit_mse, taught by r18, stops in its first batch: IndexError: "
            "tuple index out of range (mine.py, line ",
        ),
    ],
)
def test_a_method_that_answers_wrongly_is_refused_and_nothing_is_trained(own, monkeypatch, returned, says):
    def never(*_, **__):
        raise AssertionError("a training was started")

    monkeypatch.setattr(study, "execute", never)
    code, err, written = wrong(own, returned)
    assert code == 2 and says in err and "Traceback" not in err, err
    assert not written


@pytest.mark.parametrize(("least", "code"), [(3, 0), (32, 0), (33, 2)])
def test_a_method_that_needs_more_than_two_images_is_not_accused(own, least, code):
    """The study's batches are of 32."""
    (own / "mine.py").write_text(METHOD.replace(TERM, f"assert len(student.logits) >= {least}, 'few'\n        {TERM}"))
    found, _, err = kdbench(*RUN, "--dry-run")
    assert found == code and ("AssertionError: few (mine.py, line " in " ".join(err.split())) == (code == 2), err


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ("self.fc(images.mean((2, 3)))[:, :4]", "network mine answers with 4 logits, and there are 10 classes"),
        ("self.fc(images.mean((2, 3))) if not self.training else images", "Mine answered with Tensor; return logits"),
    ],
)
def test_a_network_that_does_not_fit_is_refused_too(own, answer, says):
    (own / "mine.py").write_text(METHOD)
    (own / "net.py").write_text(NET.replace("{answer}", answer))
    words = ["--model-file", "net.py", "--pair", "r18-mine", "--method", "logit_mse", "--variant", "corrected"]
    code, out, err = kdbench("run", "--method-file", "mine.py", *words)
    assert code == 2 and "Traceback" not in err and says in " ".join(err.split()), err
    assert out == "" and not (own / "runs").exists()


def test_a_method_that_reads_stages_which_a_network_has_not_is_refused(own):
    """It declares no projectors, so nobody else asks for its stages."""
    (own / "mine.py").write_text(METHOD.replace(TERM, "return {'kd': student.features[0].mean()}"))
    (own / "net.py").write_text(NET.replace("{answer}", "self.fc(images.mean((2, 3)))"))
    words = ["--model-file", "net.py", "--pair", "r18-mine", "--method", "logit_mse", "--variant", "corrected"]
    code, _, err = kdbench("run", "--method-file", "mine.py", *words)
    assert code == 2 and "stops in its first batch: IndexError" in " ".join(err.split()), err


def test_parameters_that_are_not_declared_are_refused(own):
    """Faults of projectors would be said to have none to act on, and a study of them would prove nothing."""
    made = "self.more = __import__('torch').nn.Linear(2, 2)"
    built = f"    def build(self, student, teacher):\n        {made}\n\n    def forward("
    code, err, written = wrong(own, TERM.removeprefix("return "), **{"    def forward(": built})
    assert code == 2, err
    assert "makes parameters of its own (more.weight, more.bias) and does not declare them" in err, err
    assert not written
