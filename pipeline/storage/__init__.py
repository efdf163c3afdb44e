"""Files, local and remote: paths, atomic writes, locks, manifests, tables, image stores, runs.

Here belong the formats of what is written, and the rules that keep it complete: written aside,
locked, checked by digest, committed by a manifest. What is in the images does not matter here.
Everything that lasts is read and written through this room.
"""
