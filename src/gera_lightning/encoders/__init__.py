"""Frozen pretrained encoders: raw items to rows of an embedding store.

Every encoder has `name`, `dim`, `describe()` (what a store's manifest records of it) and
`encode(items) -> float32 [n, dim]`, or `[n, L, dim]` where several layers are asked for. Each
module imports its model's library only when an encoder is made.
"""
