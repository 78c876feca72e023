"""Results for people: the table in the terminal, the recall-against-budget curve, TensorBoard's
summary, and an experiment's report.
"""
