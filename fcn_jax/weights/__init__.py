"""Its numbers: readers of published weights, and the files we save.

A reader turns one kind of file into a `WeightFile` (layers.py) and judges nothing.
``load`` recognises the file, calls its reader, finds the network that the
layers make and compares each array with it.
"""
