"""Results for people: the table in the terminal, the recall-against-budget curve, and the report of an experiment's finished runs."""

from gera_lightning.report.figures import recall_curve
from gera_lightning.report.terminal import results_table

__all__ = ["recall_curve", "results_table"]
