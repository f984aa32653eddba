"""The forms of a distillation term, as messages name them."""

WRONG = {
    "reversed": "it is KL(student || teacher): the student stands in the teacher's place",
    "probabilities": "the student's probabilities stand where torch's kl_div wants log-probabilities",
    "logits-as-target": "the teacher's logits stand where probabilities are due",
    "log-target": "the teacher's log-probabilities are taken for probabilities (log_target is not set)",
    "log-weights": "the student's log-probabilities stand where its probabilities should weigh the difference",
    "jsd-swapped": "its two divergences are turned round: the mixture stands before the bar, where student and teacher "
    "belong",
    "jsd-of-logits": "its mixture is one of logits, not of probabilities",
    "topk-of-student": "the classes that it is taken over are the student's likeliest, not the teacher's",
    "correlated-unlike": "the student's probabilities are correlated with the teacher's logits, not its probabilities",
    "undivided": "its part over the classes other than the label's holds the label's too: the mask leaves none out",
    "negative": "its sign is wrong: it drives the student away from the teacher",
}
"Forms that no method has, by name: what is wrong with each."
RIGHT = {
    "forward": "KL(teacher || student)",
    "reversed": "KL(student || teacher)",
    "jsd": "a generalized Jensen-Shannon divergence",
    "topk": "KL over the teacher's likeliest classes, both sides renormalised",
    "topk-tail": "KL over the teacher's likeliest classes and the rest as one",
    "topk-scatter": "cross-entropy with the teacher's likeliest classes, renormalised",
    "topk-sum": "cross-entropy over the teacher's likeliest classes",
    "mse-logits": "the squared distance of logits",
    "mse-probabilities": "the squared distance of probabilities",
    "hard-labels": "cross-entropy on the teacher's labels",
    "cosine": "the cosine between the answers",
    "sigmoids": "binary cross-entropy with the teacher's scores, class by class",
    "sigmoids-to-softmax": "binary cross-entropy with the teacher's probabilities, class by class",
    "decoupled": "the label's class against the rest, and the other classes among each other (decoupled)",
    "normalised": "the label's class by the teacher's confidence, and the other classes among each other (normalised)",
    "correlated": "the correlations of probabilities, along the classes, along the batch or both (DIST)",
    "correlated-logits": "the correlations of logits, along the classes, along the batch or both",
    "weighed-labels": "the labels, each weighed by the teacher's confidence in it",
    "standardised": "KL(teacher || student) of standardised logits",
}
"Forms that are right, as messages name them."
