"""What a label-efficiency study shows: its plan, its statistics, its words. Nothing here trains or reads an image."""

from ssl_med.evidence.analysis import Result, analyse
from ssl_med.evidence.planning import Comparison, Job, comparisons, label_counts
from ssl_med.evidence.subgroups import subgroup_table

__all__ = ["Comparison", "Job", "Result", "analyse", "comparisons", "label_counts", "subgroup_table"]
