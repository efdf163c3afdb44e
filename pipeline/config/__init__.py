"""What users write: job files, image settings and cluster settings, as frozen typed values.

Here belong keys, their types, their defaults and the messages that refuse a wrong value. What a
setting does belongs to the room that does it. A job is read here whole before anything is opened.
"""
