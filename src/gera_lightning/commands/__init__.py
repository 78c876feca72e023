"""One module a verb of `gera`: `run(words)` is the command line's, the function of the verb's name
is Python's.
"""

VERBS = {
    "train": (
        "run an experiment: all its methods at all its budgets and seeds, one table, one curve"
    ),
    "sweep": "run an experiment's whole sweep: all methods and seeds of its `sweep` section",
    "align": "make the aligner to put to use, from all pairs, the test items too",
    "embed": "make an experiment's two stores from raw data, as its `embed` section says",
    "import": "make a store from vectors that exist already",
    "inspect": "show what a store holds",
    "show": "show an experiment's settings: value, where from, and meaning",
    "affinity": "compare two frozen spaces, or all their layers, before training",
    "doctor": "say whether two stores can be aligned, and how",
    "report": "report an experiment's finished runs: intervals, comparisons, examples",
    "search": "search one modality with the other: by a row, new words, a sound or a picture",
    "evaluate": "measure an aligner on any two stores, or classify by prompts",
    "serve": "serve a page on this machine to try an aligner",
    "export": "write both stores in the shared space, with a FAISS index each",
    "push": "share an aligner on the Hugging Face hub, with a model card",
    "keep": "keep an experiment's finished results in docs/results, for the report alone",
    "completion": "print a script that completes verbs, experiments, methods and settings in bash",
}
"""What `gera VERB` does. `commands/VERB.py` does it; its docstring is `gera VERB --help`."""
