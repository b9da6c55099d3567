"""A timm model with the normalisation it was trained with, and a position in the epoch that can be saved."""

import timm
import torch
from timm.data import resolve_model_data_config
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler

import msltrain

DATA, KEEP_MASKS = "shards/voc2007/trainval", "shards/masks/high"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NUM_EPOCHS = 2

training, _ = msltrain.hold_out(DATA, 0.1)
network = timm.create_model("resnet10t", pretrained=False, num_classes=len(training.classes)).to(DEVICE)
expected = resolve_model_data_config(network)
config = msltrain.StreamConfig(image_size=64, batch_size=8, mean=expected["mean"], std=expected["std"])
loader = msltrain.Loader(training, config, training=True, device=DEVICE)
keep_masks = msltrain.KeepMasks.open(KEEP_MASKS, config.image_size, DEVICE)

step = msltrain.SiameseStep(network)
optimizer = create_optimizer_v2(step, opt="adamw", lr=1e-3)
schedule = CosineLRScheduler(optimizer, t_initial=NUM_EPOCHS * len(loader))

num_steps = 0
while loader.epoch < NUM_EPOCHS:  # the loader counts: the end of an epoch is the beginning of the next
    for batch in loader:
        losses = step(batch.image_BCHW, keep_masks.of_keys(batch.keys, epoch=loader.epoch), batch.target_BK)
        optimizer.zero_grad()
        losses["total"].backward()
        optimizer.step()
        num_steps += 1
        schedule.step_update(num_steps)
    state = {"network": network.state_dict(), "optimizer": optimizer.state_dict(), "loader": loader.state_dict()}
    torch.save(state, "timm_model.pt")  # loader.load_state_dict goes on at this very sample
    print(f"epoch {loader.epoch}: loss {losses['total']:.3f}")
