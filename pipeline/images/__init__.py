"""From the bytes of one image file to pixels: decode, orient, convert, resize.

Here belong the readers of image formats, their limits before memory is taken, and the conversion
to one shape. Where the bytes come from, and what an image is labelled, does not. A file ends as
pixels or as the reason why not.
"""
