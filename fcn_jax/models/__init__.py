"""The network: geometry, bilinear upsampling, VGG-16 and the FCNs on it."""
