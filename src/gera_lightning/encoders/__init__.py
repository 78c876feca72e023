"""Frozen pretrained encoders: raw items to rows of an embedding store.

Every encoder has `name`, `dim`, `describe()` (what a store's manifest records of it) and
`encode(items) -> float32 [n, dim]`, or `[n, L, dim]` of L layers. The library of a model is
imported only when its encoder is made.
"""
