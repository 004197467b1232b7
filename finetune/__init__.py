"""Fine-tuning on few labels: heads on any backbone, trained by the same learner as the pretext tasks."""

from finetune.classify import Classify
from finetune.segment import Segment

__all__ = ["Classify", "Segment"]
