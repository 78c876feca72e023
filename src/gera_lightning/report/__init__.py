"""Results for people: the table in the terminal, the recall-against-budget curve, TensorBoard's summary, and an experiment's report."""

from gera_lightning.report.board import write_board
from gera_lightning.report.figures import recall_curve
from gera_lightning.report.terminal import results_table

__all__ = ["recall_curve", "results_table", "write_board"]
