"""What is done to the images of a training batch on the device, beyond crop and flip: one by one, and mixed."""
