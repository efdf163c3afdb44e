"""The words and the arithmetic that every other room uses: pure functions and plain values.

Here belong errors and how they are worded, the names of variables and dimensions, integer
arithmetic and its bounds, digests, partitions, classes, blocks of samples and the protocol of what
gives them. What opens a file, starts a task or reads settings does not. Nothing here imports from
another room.
"""
