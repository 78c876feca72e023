"""Whether two stores can be aligned, in words: `stores` looks at the data, `evidence` cross-validates presets, `examine` concludes."""
