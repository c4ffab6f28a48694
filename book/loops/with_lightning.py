"""Distillation with Lightning: python with_lightning.py TEACHER STUDENT EPOCHS"""

import sys
from contextlib import nullcontext

import lightning
import torch
from timm.layers import convert_sync_batchnorm
from torch.nn import functional as F
from torch.utils.data import DataLoader

from apd import APDLoss
from apd.data.scenes import Scenes
from apd.models import build_segmenter, load_weights
from apd.normalizers import across_processes, global_count


class Distillation(lightning.LightningModule):
    def __init__(self, teacher_file):
        super().__init__()
        self.student = build_segmenter("test_efficientnet", 10, head_width=32, output_stride=4, dropout=0.0)
        self.teacher = build_segmenter("test_efficientnet", 10, head_width=128, output_stride=4)
        load_weights(self.teacher.eval().requires_grad_(False), teacher_file)  # Lightning leaves it in eval mode
        self.distiller = APDLoss(32, 128, num_classes=10, width=128)

    def configure_model(self):
        if self.trainer.world_size > 1 and self.trainer.strategy.root_device.type == "cuda":
            convert_sync_batchnorm(self.student)  # of timm: Lightning's own loses the activations in timm's norms

    def training_step(self, batch, _):
        images, labels = batch[0] / 255, batch[1].long()
        logits, features, auxiliary = self.student(images)
        with torch.no_grad():
            teacher = self.teacher(images)
        maps = dict(student_features=features, teacher_features=teacher.features, student_logits=logits)
        with across_processes() if self.trainer.world_size > 1 else nullcontext():  # counts of the whole batch
            distilled = self.distiller(**maps, teacher_logits=teacher.logits, labels=labels)["loss"]
            loss = task_loss(logits, labels) + 0.4 * task_loss(auxiliary, labels) + distilled
        self.log("loss", loss, sync_dist=True, prog_bar=True)
        return loss

    def configure_optimizers(self):
        return torch.optim.AdamW([*self.student.parameters(), *self.distiller.parameters()], lr=2e-3)


def task_loss(logits, labels):
    logits = F.interpolate(logits, labels.shape[1:], mode="bilinear")
    summed = F.cross_entropy(logits, labels, ignore_index=255, reduction="sum")
    return summed / global_count((labels != 255).sum())


teacher_file, student_file, epochs = sys.argv[1:]
lightning.seed_everything(0)
scenes = Scenes(200, height=96, width=96, context_shift=0.5, seed=0)
trainer = lightning.Trainer(max_epochs=int(epochs), logger=False, enable_checkpointing=False)
trainer.fit(model := Distillation(teacher_file), DataLoader(scenes, 8 // trainer.world_size, shuffle=True))
if trainer.is_global_zero:
    print(f"loss {trainer.callback_metrics['loss']:.5f}")
    torch.save(model.student.state_dict(), student_file)
