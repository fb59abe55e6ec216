"""Pure numpy: number formats, objectives, fits. Arrays and specs in, arrays or records out; arguments are never written.

Glossary of the shape comments: N rows (images x sampled tokens), I inputs, O outputs of a linear, S samples (images),
H heads, T tokens (queries), K keys, D width of a head. Weights are (I, O), activations (.., I); ``axis`` is the axis kept.
"""
