"""More ways in which people hand answers to a loss, watched for three steps: the right ones beside the wrong."""

import pytest
import torch
import torch.nn.functional as F
from test_explain_watched import Segmenter, T, Tagger, by_hand, finding, kl, pictures, rows, sentences, watched


def of_cut_tokens(soft, way):
    """Label losses that leave out the last token, with the classes last or second."""
    torch.manual_seed(0)

    def loss(student, teacher, y):
        z = student[0][:, :-1]
        ce = F.cross_entropy(z.transpose(1, 2), y[:, 1:]) if way == "second" else F.cross_entropy(rows_of(z), cut(y))
        return 0.3 * ce + 0.7 * soft(student[0], teacher[0])

    return watched(Tagger(12), Tagger(16), sentences, loss)


def rows_of(x):
    return x.flatten(0, 1)


def cut(y):
    return y[:, 1:].flatten()


@pytest.mark.parametrize("way", ["second", "last"])
def test_labels_over_fewer_tokens_hide_no_distillation_however_the_classes_lie(way):
    watch = of_cut_tokens(lambda z, t: kl(rows_of(z[:, :-1]), rows_of(t[:, :-1])), way)
    assert [finding(watch, audit).status for audit in ("KD305", "KD311", "KD313")] == ["pass"] * 3
    shifted = finding(of_cut_tokens(lambda z, t: kl(rows_of(z[:, 1:]), rows_of(t[:, :-1])), way), "KD305")
    assert shifted.status == "fail" and "the student's token i is taught by the teacher's i - 1" in shifted.message


def of_small_pixels(soft):
    """Labels of a picture twice as large as the answers."""
    torch.manual_seed(0)

    def data():
        return pictures()[0], torch.randint(0, 5, (4, 12, 12))

    def loss(z, t, y):
        return 0.5 * F.cross_entropy(F.interpolate(z, scale_factor=2, mode="bilinear"), y) + 0.5 * soft(z, t)

    return watched(Segmenter(4), Segmenter(8), data, loss)


def test_labels_of_enlarged_answers_hide_no_distillation_of_the_small_ones():
    watch = of_small_pixels(lambda z, t: kl(rows(z), rows(t)))
    assert [finding(watch, audit).status for audit in ("KD305", "KD311", "KD313")] == ["pass"] * 3
    (e,) = watch.trace.losses.sights[0].explanations
    assert (e.form, e.weight, e.label_weight) == ("forward", pytest.approx(0.5, rel=1e-4), pytest.approx(0.5))
    mixed = finding(of_small_pixels(lambda z, t: kl(z.reshape(-1, 5), t.reshape(-1, 5))), "KD313")
    assert mixed.status == "fail" and "rows that mix pixels and classes" in mixed.message


def reversed_by_torch(z, t, log_target=True):
    p, q = (x.log_softmax(-1) for x in (t, z))
    return F.kl_div(p, q if log_target else q.exp(), reduction="none", log_target=log_target).sum(-1).mean()


def of_tokens(soft):
    torch.manual_seed(0)
    return watched(Tagger(12), Tagger(16), sentences, lambda s, t, _: soft(s[0], t[0]))


def test_a_reversed_kl_over_tokens_by_torch_is_the_choice_that_it_is_by_hand():
    for soft in (by_hand, reversed_by_torch):
        found = finding(of_tokens(soft), "KD313")
        assert found.status == "pass" and "KL(student || teacher)" in found.message
    found = finding(of_tokens(lambda z, t: reversed_by_torch(z, t, False)), "KD313")
    assert found.status == "fail" and "arguments are swapped" in found.message


def summed(z, t, rows):
    return F.kl_div(F.log_softmax(z / T, -1), F.softmax(t / T, -1), reduction="sum") * T * T / rows


def test_a_sum_divided_by_the_tokens_of_more_than_one_backward_is_no_sum_that_is_not_divided():
    accumulated = of_tokens(lambda z, t: 0.5 * summed(z, t, 131))
    assert finding(accumulated, "KD312").status == "not_triggered"
    undivided = of_tokens(lambda z, t: 0.5 * summed(z, t, 1))
    assert finding(undivided, "KD312").status == "fail" and "a factor B" in finding(undivided, "KD312").message
