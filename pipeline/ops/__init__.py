"""Lazy labelled arrays in and out: class sums, medians, distances, neighbours, predictions.

Here belong the operations of a notebook, and the block functions that jobs share with them. They
call `kernels` and know no paths. A new metric or prototype is defined here.
"""
