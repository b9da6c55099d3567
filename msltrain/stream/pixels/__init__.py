"""From bytes to pixels: decoding, cropping and resizing, on the host or on the device, into reused buffers."""
