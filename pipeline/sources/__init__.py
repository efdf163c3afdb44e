"""What images can come from: one small reader for each kind of input, all behind one protocol.

Here belong finding samples, their labels and splits in folders, archives, tables and arrays, and
the catalog of named data sets. Decoding belongs to `images`, writing to `ingestion`. A new kind
of input is a module here and a line in `registry`.
"""
