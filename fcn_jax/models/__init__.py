"""The network: geometry, bilinear upsampling, VGG-16 and the FCNs built on it."""
