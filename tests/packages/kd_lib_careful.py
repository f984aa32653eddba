"""KD_Lib: VanillaKD by a user who freezes the teacher and calls train_student once per epoch."""

import kd_lib_vision

teacher, student, loader, optimizers = kd_lib_vision.parts()
distiller = kd_lib_vision.KD.VanillaKD(teacher, student, loader, loader, *optimizers, temp=4.0)
distiller.train_teacher(epochs=2, plot_losses=False)
teacher.requires_grad_(False)
for _ in range(4):
    distiller.train_student(epochs=1, plot_losses=False)
