"""The Siamese step as a LightningModule; the loader goes into the Trainer as it is, and into its checkpoints."""

import lightning
import torch
from torchvision.models import resnet18

import msltrain

DATA, KEEP_MASKS = "shards/voc2007/trainval", "shards/masks/high"


class Recogniser(lightning.LightningModule):
    def __init__(self, num_classes: int):
        super().__init__()
        self.step = msltrain.SiameseStep(resnet18(num_classes=num_classes), msltrain.LossConfig())
        self.keep_masks = msltrain.KeepMasks.open(KEEP_MASKS, image_size=64)

    def training_step(self, batch: msltrain.Batch, batch_index: int) -> torch.Tensor:
        keep_mask = self.keep_masks.of_keys(batch.keys, epoch=self.current_epoch).to(self.device)
        losses = self.step(batch.image_BCHW, keep_mask, batch.target_BK)
        self.log_dict(losses, batch_size=len(batch))
        return losses["total"]

    def validation_step(self, batch: msltrain.Batch, batch_index: int) -> None:
        loss = torch.nn.functional.binary_cross_entropy_with_logits(
            self.step.recogniser(batch.image_BCHW), batch.target_BK
        )
        self.log("validation_loss", loss, batch_size=len(batch), prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)


config = msltrain.StreamConfig(image_size=64, batch_size=8)
training, validation = msltrain.hold_out(DATA, 0.1)
train_loader = msltrain.Loader(training, config, training=True)  # Lightning moves the batches
validation_loader = msltrain.Loader(validation, config, training=False)
trainer = lightning.Trainer(max_epochs=2, devices=1, logger=False, log_every_n_steps=1)
trainer.fit(Recogniser(len(training.classes)), train_loader, validation_loader)
