"""From a source to an image-set store: plan, write, finish, compact, append.

Here belong the steps that write an image set, begin it anew, grow it, and find its exact
duplicates. Reading the input belongs to `sources`, the format of the store to `storage`. The
package is not called `ingest` because importing it would hide the public function
`pipeline.ingest`.
"""
