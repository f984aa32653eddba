"""KD_Lib: VanillaKD as its README shows it."""

import kd_lib_vision

teacher, student, loader, optimizers = kd_lib_vision.parts()
distiller = kd_lib_vision.KD.VanillaKD(teacher, student, loader, loader, *optimizers, temp=4.0)
distiller.train_teacher(epochs=2, plot_losses=False)
distiller.train_student(epochs=4, plot_losses=False)
