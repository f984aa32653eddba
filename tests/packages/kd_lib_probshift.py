"""KD_Lib: ProbShift with its own default loss."""

import kd_lib_vision

teacher, student, loader, optimizers = kd_lib_vision.parts()
distiller = kd_lib_vision.KD.ProbShift(teacher, student, loader, loader, *optimizers, temp=4.0)
distiller.train_teacher(epochs=2, plot_losses=False)
distiller.train_student(epochs=4, plot_losses=False)
