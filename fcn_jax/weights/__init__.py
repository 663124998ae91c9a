"""Its numbers: readers of published weights, and the files we save.

A reader turns one kind of file into a `Content` (content.py) and judges nothing.
``store`` recognises the file (sniff.py), calls its reader, finds the network that the
layers make (network.py) and compares each array with it.
"""
