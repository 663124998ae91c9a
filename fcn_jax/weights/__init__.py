"""Its numbers: readers of published weights, and the files we save.

A reader turns one kind of file into ``(layers, mean_rgb)`` and judges nothing:
``layers`` is ``{"conv1_1": {"kernel": HWIO, "bias": [O]}, ...}`` for RGB input in
[0, 255], ``mean_rgb`` the mean the network subtracts. ``store`` recognises the file,
calls its reader and checks the layers against the network.
"""
