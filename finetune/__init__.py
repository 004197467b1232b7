"""Fine-tuning on few labels: heads on any backbone, trained by the same learner as the pretext tasks."""

from finetune.classify import Classify
from finetune.detect import Detect
from finetune.findings import MultiLabel
from finetune.linear_decoder import LinearDecoder
from finetune.mixing import Mixing
from finetune.ordinal import Ordinal
from finetune.regress import Regress
from finetune.segment import Segment
from finetune.tuning import Adapters, Frozen, Full, LinearThenFull, LoRA, Sawtooth, Tuning

__all__ = [
    "Adapters",
    "Classify",
    "Detect",
    "Frozen",
    "Full",
    "LinearDecoder",
    "LinearThenFull",
    "LoRA",
    "Mixing",
    "MultiLabel",
    "Ordinal",
    "Regress",
    "Sawtooth",
    "Segment",
    "Tuning",
]
