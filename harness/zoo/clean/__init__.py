"""The clean zoo: small correct trainings in many styles, under none of which an audit may raise an alarm.

A member is a training of a dozen steps. It opens ``watch(student=..., teacher=..., optimizer=...)`` round its loop:
that is :func:`kdbench.watch` where its roles are declared, and nothing at all where it is seen as a foreign script.
"""
