"""Whole jobs: plan, memory model, the three passes, preview, verify and repair.

Here belongs the order in which the other rooms are called for one command. Arithmetic, formats
and clusters do not. A job can be stopped anywhere, and the same call completes it.
"""
